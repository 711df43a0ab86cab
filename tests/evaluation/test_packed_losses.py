"""Loss, bits per byte and its two parts, against a model whose probabilities are known."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plait.evaluation import language
from plait.evaluation.language import Losses, packed_losses, token_losses
from plait.evaluation.score import SAMPLES
from plait.evaluation.texts import text_scores
from plait.models import PlaitConfig, PlaitForCausalLM

VOCAB = 4


class Bigram(nn.Module):
    """Predicts from a table of next-token logits."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(0)))

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(logits=self.table[input_ids])


class Rows(list):  # a map-style dataset
    pass


def rows(count: int, length: int = 12) -> Rows:
    tokens = torch.randint(VOCAB, (count, length + 1), generator=torch.Generator().manual_seed(1))
    return Rows({"input_ids": row[:-1], "targets": row[1:]} for row in tokens)


def measure(model: nn.Module, dataset: Rows, **options: Any) -> Losses:
    return packed_losses(model, dataset, **{"batch_size": 2, "vocab_size": VOCAB, **options})  # type: ignore[arg-type]


def test_loss_is_the_mean_negative_log_probability() -> None:
    model, dataset = Bigram(), rows(5)
    found = measure(model, dataset)
    logs = model.table.log_softmax(-1)
    losses = [[-logs[i, t].item() for i, t in zip(r["input_ids"], r["targets"], strict=True)] for r in dataset]
    assert found.sums["all"].tolist() == pytest.approx([sum(row) for row in losses], rel=1e-6)
    assert found.tokens["all"].tolist() == [12] * 5
    bits, loss, *_ = text_scores(found, [24] * 5, {SAMPLES: "x"})
    mean = sum(map(sum, losses)) / 60
    assert (loss.score, loss.unit) == (pytest.approx(mean, rel=1e-6), "nats per token")
    assert bits.score == pytest.approx(mean / math.log(2) / 2, rel=1e-6)  # two bytes a token
    assert (bits.n, bits.interval, bits.more) == (5, "bootstrap", {SAMPLES: "x"})
    assert bits.low < bits.score < bits.high


def test_the_two_parts_add_up() -> None:
    found = measure(Bigram(), rows(5))
    for table in (found.sums, found.tokens):
        assert (table["ar_hits"] + table["other"]).tolist() == pytest.approx(table["all"].tolist())
    assert 0 < found.tokens["ar_hits"].sum() < 60
    _, _, hits, other = text_scores(found, [24] * 5, {SAMPLES: "x"})
    assert hits.more["share"] + other.more["share"] == pytest.approx(1)
    assert hits.score == pytest.approx(found.mean("ar_hits"))
    assert list(hits.weights) == found.tokens["ar_hits"].tolist()


def test_ignored_targets_do_not_count() -> None:
    dataset = rows(2)
    for row in dataset:
        row["targets"] = row["targets"].clone()
        row["targets"][3:] = -100
    whole = measure(Bigram(), dataset)
    cut = measure(Bigram(), Rows({key: value[:3] for key, value in row.items()} for row in dataset))
    assert whole.tokens["all"].tolist() == [3, 3]
    assert whole.mean() == pytest.approx(cut.mean())


def test_a_text_without_repetition_has_no_hits() -> None:
    row = {"input_ids": torch.tensor([0, 1, 2]), "targets": torch.tensor([1, 2, 3])}
    found = measure(Bigram(), Rows([row]))
    assert found.mean("ar_hits") is None
    metrics = [score.metric for score in text_scores(found, [6], {SAMPLES: "x"})]
    assert metrics == ["bits per byte", "loss", "loss on other tokens"]
    assert [score.metric for score in text_scores(found, [6], {SAMPLES: "x"}, split_ar_hits=False)] == metrics[:2]


def test_parts_of_a_batch_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure(Bigram(), rows(5), batch_size=4)
    monkeypatch.setattr(language, "MOST_LOGITS", 12 * VOCAB)  # one row at a time
    parts = measure(Bigram(), rows(5), batch_size=4)
    for group, sums in whole.sums.items():
        assert parts.sums[group].tolist() == pytest.approx(sums.tolist())


def test_rows_whose_documents_are_apart_stay_samples() -> None:
    dataset = rows(3)
    for row in dataset:
        row["cu_seqlens"] = torch.tensor([0, 5, 12])
    assert measure(Bigram(), dataset, batch_size=3).sums["all"].tolist() == pytest.approx(
        measure(Bigram(), rows(3), batch_size=1).sums["all"].tolist()
    )


def test_agrees_with_the_loss_of_the_model() -> None:
    config = PlaitConfig(vocab_size=11, hidden_size=32, layer_types=["gated_deltanet", "attention"])
    model = PlaitForCausalLM(config).eval()
    tokens = torch.randint(11, (3, 21))
    batch = {"input_ids": tokens[:, :-1], "targets": tokens[:, 1:]}
    assert token_losses(model, batch).mean().item() == pytest.approx(model(tokens, labels=tokens).loss.item(), rel=1e-5)
    starts = torch.tensor([0, 7, 20, 40, 60])
    packed = {"input_ids": tokens[:, :-1].reshape(1, -1), "targets": tokens[:, 1:].reshape(1, -1), "cu_seqlens": starts}
    apart = token_losses(model, packed)
    alone = token_losses(model, {"input_ids": tokens[:1, 7:-1], "targets": tokens[:1, 8:]})
    assert torch.allclose(apart[:, 7:20], alone, atol=1e-5)

"""Loss, bits per byte and its two parts, against a model whose probabilities are known."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plait.evaluation import perplexity
from plait.evaluation.perplexity import language_modelling, token_losses
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


def measure(model: nn.Module, dataset: Rows, **options: Any) -> dict[str, Any]:
    defaults = {"batch_size": 2, "vocab_size": VOCAB, "bytes_per_token": 2.0}
    return language_modelling(model, dataset, **{**defaults, **options})  # type: ignore[arg-type]


def test_loss_is_the_mean_negative_log_probability() -> None:
    model, dataset = Bigram(), rows(5)
    result = measure(model, dataset)
    logs = model.table.log_softmax(-1)
    losses = [[-logs[i, t].item() for i, t in zip(r["input_ids"], r["targets"], strict=True)] for r in dataset]
    mean = sum(map(sum, losses)) / 60
    assert result["loss"] == pytest.approx(mean, rel=1e-6)
    assert result["bits_per_byte"] == pytest.approx(mean / math.log(2) / 2, rel=1e-6)
    assert result["tokens"] == 60
    batches = [sum(map(sum, losses[i : i + 2])) / (12 * len(losses[i : i + 2])) for i in (0, 2, 4)]
    assert result["batches"] == pytest.approx(batches, rel=1e-6)


def test_the_two_parts_add_up() -> None:
    result = measure(Bigram(), rows(5))
    hits, other = result["ar_hits"], result["other"]
    assert hits["tokens"] + other["tokens"] == result["tokens"]
    assert hits["share"] + other["share"] == pytest.approx(1)
    assert 0 < hits["share"] < 1
    assert hits["loss"] * hits["share"] + other["loss"] * other["share"] == pytest.approx(result["loss"])
    assert len(hits["batches"]) == 3


def test_ignored_targets_do_not_count() -> None:
    dataset = rows(2)
    for row in dataset:
        row["targets"] = row["targets"].clone()
        row["targets"][3:] = -100
    whole = measure(Bigram(), dataset)
    cut = measure(Bigram(), Rows({key: value[:3] for key, value in row.items()} for row in dataset))
    assert whole["tokens"] == 6
    assert whole["loss"] == pytest.approx(cut["loss"])


def test_a_text_without_repetition_has_no_hits() -> None:
    row = {"input_ids": torch.tensor([0, 1, 2]), "targets": torch.tensor([1, 2, 3])}
    result = measure(Bigram(), Rows([row]))
    assert result["ar_hits"] == {"loss": None, "share": 0.0, "tokens": 0, "batches": []}
    assert measure(Bigram(), Rows([row]), split_ar_hits=False)["ar_hits"] is None


def test_parts_of_a_batch_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure(Bigram(), rows(5), batch_size=4)
    monkeypatch.setattr(perplexity, "MOST_LOGITS", 12 * VOCAB)  # one row at a time
    parts = measure(Bigram(), rows(5), batch_size=4)
    assert parts["batches"] == pytest.approx(whole["batches"])
    assert parts["other"]["batches"] == pytest.approx(whole["other"]["batches"])


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

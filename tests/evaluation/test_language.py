"""Perplexity of texts against models whose probabilities are known, against lm-eval's windows, and by context."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedTokenizerFast

from plait.data.tokenizers import byte_tokenizer
from plait.errors import DataError, OptionError
from plait.evaluation import language
from plait.evaluation.language import Window, loss_by_context, rolling_windows, text_perplexity
from plait.models import PlaitConfig, PlaitForCausalLM

SHARED = Path(os.environ.get("PLAIT_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
VOCAB, EOS = 258, 256
TEXTS = ["the cat sat on the mat", "", "une tasse de café", "to be or not to be, that is the question"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


class Known(nn.Module):
    """A model whose logits are a function of its input ids ``(B, T)``."""

    def __init__(self, logits: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 1)
        self.logits = logits

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(logits=self.logits(input_ids))


TABLE = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(0))


def bigram() -> Known:
    return Known(lambda ids: TABLE[ids])


def test_windows_by_hand() -> None:
    assert rolling_windows(10, 4) == [Window(0, 4, 4), Window(4, 8, 4), Window(6, 10, 2)]
    assert rolling_windows(10, 4, context=3) == [Window(0, 4, 4), Window(2, 6, 2), Window(4, 8, 2), Window(6, 10, 2)]
    assert rolling_windows(3, 4) == [Window(0, 3, 3)]
    assert rolling_windows(0, 4) == []
    with pytest.raises(OptionError, match="context=5"):
        rolling_windows(10, 4, context=5)


def test_windows_are_those_of_lm_eval() -> None:
    lm_eval = pytest.importorskip("lm_eval.utils")
    for tokens in range(1, 14):
        for length in range(1, 7):
            for context in range(1, length + 1):
                document = [-1, *range(tokens)]
                ours = [
                    (document[w.start : w.end], document[w.start + 1 : w.end + 1][-w.scored :])
                    for w in rolling_windows(tokens, length, context)
                ]
                theirs = lm_eval.get_rolling_token_windows(list(range(tokens)), -1, length, context)
                assert ours == [(list(inputs), list(targets)) for inputs, targets in theirs]


@pytest.mark.parametrize(("length", "context"), [(1000, 1), (7, 1), (7, 4)])
def test_perplexities_of_a_known_model(tokenizer: PreTrainedTokenizerFast, length: int, context: int) -> None:
    found = text_perplexity(bigram(), tokenizer, TEXTS, length=length, context=context)
    logs = TABLE.double().log_softmax(-1)
    total = 0.0
    for text in TEXTS:
        ids = [EOS, *text.encode()]
        total -= sum(logs[first, second].item() for first, second in pairwise(ids))
    tokens = sum(len(text.encode()) for text in TEXTS)
    assert found["tokens"] == found["bytes"] == tokens == 22 + 18 + 40
    assert found["words"] == 6 + 4 + 10
    assert found["loss"] == pytest.approx(total / tokens, rel=1e-6)
    assert found["token_perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-5)
    assert found["word_perplexity"] == pytest.approx(math.exp(total / 20), rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(total / tokens / math.log(2), rel=1e-6)


def test_a_text_begins_with_the_beginning_of_text_token() -> None:
    begun = byte_tokenizer()
    begun.bos_token = "<|pad|>"  # 257
    found = text_perplexity(bigram(), begun, ["a"], length=8)
    assert found["loss"] == pytest.approx(-TABLE.log_softmax(-1)[257, ord("a")].item(), rel=1e-6)


@pytest.mark.parametrize(("length", "context"), [(50, 1), (7, 1), (7, 4)])
def test_hits_are_repeated_bigrams_of_the_window(tokenizer: PreTrainedTokenizerFast, length: int, context: int) -> None:
    found = text_perplexity(bigram(), tokenizer, TEXTS[-1:], length=length, context=context)
    ids = [EOS, *TEXTS[-1].encode()]
    hits, others = [], []
    logs = TABLE.log_softmax(-1)
    for window in rolling_windows(len(ids) - 1, length, context):
        seen = set()
        for place in range(window.start, window.end):
            pair = (ids[place], ids[place + 1])
            if place >= window.end - window.scored:
                (hits if pair in seen else others).append(-logs[pair].item())
            seen.add(pair)
    assert found["ar_hits"]["tokens"] == len(hits)
    assert found["other"]["tokens"] == len(others)
    assert found["ar_hits"]["share"] == pytest.approx(len(hits) / 40)
    assert found["other"]["loss"] == pytest.approx(sum(others) / len(others), rel=1e-5)
    if length == 50:
        assert len(hits) > 5
    if hits:
        assert found["ar_hits"]["loss"] == pytest.approx(sum(hits) / len(hits), rel=1e-5)


def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    found = {
        "plait": PlaitForCausalLM(PlaitConfig(vocab_size=VOCAB, hidden_size=32, layer_types=["deltanet", "attention"])),
        "llama": LlamaForCausalLM(LlamaConfig(num_attention_heads=2, **sizes)),
        "mamba": MambaForCausalLM(MambaConfig(**sizes)),
    }
    for model in found.values():
        for parameter in model.parameters():  # larger than a fresh model's, so that context matters
            if parameter.dim() > 1:
                parameter.data.normal_(0, 0.3)
    return {name: model.eval() for name, model in found.items()}


@pytest.mark.parametrize("name", ["plait", "llama"])
def test_equal_to_a_plain_computation(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    model = models()[name]
    total = 0.0
    for text in TEXTS:
        ids = torch.tensor([EOS, *text.encode()])
        for window in rolling_windows(len(ids) - 1, 9, 3):
            with torch.no_grad():
                logits = model(input_ids=ids[None, window.start : window.end]).logits[0]
            losses = nn.functional.cross_entropy(logits, ids[window.start + 1 : window.end + 1], reduction="none")
            total += losses[-window.scored :].double().sum().item()
    for batch_size in (1, 4):
        found = text_perplexity(model, tokenizer, TEXTS, length=9, context=3, batch_size=batch_size)
        assert found["loss"] == pytest.approx(total / 80, rel=1e-5)


@pytest.mark.parametrize("name", ["plait", "llama", "mamba"])
def test_long_windows_are_read_in_pieces(
    tokenizer: PreTrainedTokenizerFast, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, text = models()[name], "to be or not to be, that is the question " * 2
    whole = text_perplexity(model, tokenizer, [text], length=60)
    widest = 0
    monkeypatch.setattr(language, "MOST_LOGITS", 20 * VOCAB)

    def watch(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal widest
        widest = max(widest, output.logits.shape[1])

    model.register_forward_hook(watch)
    pieces = text_perplexity(model, tokenizer, [text], length=60)
    assert pieces["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert pieces["ar_hits"]["loss"] == pytest.approx(whole["ar_hits"]["loss"], rel=1e-5)
    if name != "mamba":  # transformers' Mamba may forget its state between pieces, and is then read at once
        assert widest == 20


class Ages(Known):
    """Says ``a`` with odds of k to 1 against each other token after k tokens of context."""

    def __init__(self) -> None:
        super().__init__(self.by_age)

    @staticmethod
    def by_age(ids: Tensor) -> Tensor:
        logits = torch.zeros(*ids.shape, VOCAB)
        logits[..., ord("a")] = torch.arange(1, ids.shape[1] + 1).log()
        return logits


def test_loss_by_context_by_hand(tokenizer: PreTrainedTokenizerFast) -> None:
    losses = {k: math.log(VOCAB - 1 + k) - math.log(k) for k in range(1, 9)}
    found = loss_by_context(Ages(), tokenizer, ["a" * 25, "a" * 8, "a" * 9], length=8)
    # three windows of the first text (starts 0, 8, 16), none of the second, one of the third
    assert [(group["from"], group["to"], group["tokens"]) for group in found] == [
        (1, 1, 4),
        (2, 3, 8),
        (4, 7, 16),
        (8, 8, 4),
    ]
    for group in found:
        span = range(group["from"], group["to"] + 1)
        assert group["loss"] == pytest.approx(sum(losses[k] for k in span) / len(span), rel=1e-6)
    assert found[0]["loss"] > found[1]["loss"] > found[2]["loss"] > found[3]["loss"]


def test_a_stride_slides_the_window(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "the cat sat on the mat"
    found = loss_by_context(bigram(), tokenizer, [text], length=8, stride=3, edges=[3])
    ids, logs = list(text.encode()), TABLE.log_softmax(-1)
    wanted = []
    for start in range(0, len(ids) - 8, 3):
        wanted += [-logs[ids[start + k - 1], ids[start + k]].item() for k in range(3, 9)]
    assert found == [{"from": 3, "to": 8, "loss": pytest.approx(np.mean(wanted), rel=1e-5), "tokens": 30}]


def test_what_cannot_be_measured(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="no text to measure"):
        text_perplexity(bigram(), tokenizer, ["", " "], length=8)
    with pytest.raises(OptionError, match="context=9"):
        text_perplexity(bigram(), tokenizer, TEXTS, length=8, context=9)
    with pytest.raises(DataError, match="the longest has 40 tokens"):
        loss_by_context(bigram(), tokenizer, TEXTS, length=40)
    with pytest.raises(OptionError, match="stride=0"):
        loss_by_context(bigram(), tokenizer, TEXTS, length=8, stride=0)
    for edges in ([2, 1], [0, 1], [1, 9], []):
        with pytest.raises(OptionError, match="edges="):
            loss_by_context(bigram(), tokenizer, TEXTS, length=8, edges=edges)
    bare = byte_tokenizer()
    bare.eos_token = None
    with pytest.raises(OptionError, match="neither a beginning-of-text nor an end-of-text"):
        text_perplexity(bigram(), bare, TEXTS, length=8)


@pytest.mark.skipif(
    not (SHARED / "wikitext2-valid.txt").is_file(), reason="no WikiText here; the tests above make texts"
)
def test_wikitext(tokenizer: PreTrainedTokenizerFast) -> None:
    text = (SHARED / "wikitext2-valid.txt").read_text(encoding="utf-8")[:60_000]
    ids = np.frombuffer(text.encode(), np.uint8).astype(np.int64)
    counts = np.full((VOCAB, VOCAB), 0.1)
    np.add.at(counts, (ids[:-1], ids[1:]), 1)
    logs = np.log(counts / counts.sum(1, keepdims=True))
    table = torch.from_numpy(logs).float()
    found = text_perplexity(Known(lambda given: table[given]), tokenizer, [text], length=512)
    total = -logs[EOS, ids[0]] - logs[ids[:-1], ids[1:]].sum()
    assert found["bits_per_byte"] == pytest.approx(total / math.log(2) / len(ids), rel=1e-5)
    assert found["word_perplexity"] == pytest.approx(math.exp(total / len(text.split())), rel=1e-4)
    assert 3 < found["bits_per_byte"] < 4  # a bigram model of bytes
    by_context = loss_by_context(Known(lambda given: table[given]), tokenizer, [text], length=512)
    assert max(g["loss"] for g in by_context[3:]) - min(g["loss"] for g in by_context[3:]) < 0.25  # it has no memory

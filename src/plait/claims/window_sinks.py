"""A claim of "Efficient Streaming Language Models with Attention Sinks" (2309.17453), on a fixture."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from plait.claims.contract import Announce, Claim, Measurement, Outcome
from plait.data.corpora import open_corpus
from plait.drawing.lines import Line, LinesFigure
from plait.evaluation.language import token_losses
from plait.evaluation.subject import open_subject
from plait.policies import policy
from plait.provenance import provenance
from plait.statistics.comparisons import interval
from plait.statistics.interval import Interval

FIXTURE = "fixture:recall-small"
#: Tokens of a piece (as many as the fixture was trained on), pieces a seed, tokens of the cache.
LENGTH, PIECES, CACHE = 256, 32, 64
#: First tokens kept in that cache; the paper tries 0, 1, 2, 4 and 8.
SINKS = (0, 1, 2, 4, 8)
SEEDS = (0, 1, 2)
#: Nats per token that count as destroyed, and the share of the damage that counts as restored.
DESTROYED, RESTORED = 1.0, 0.5


class SinksKeepAWindowAlive(Claim):
    """A window without the first tokens fails, with four of them it does not."""

    sentence = (
        "A cache of the most recent tokens destroys the loss of a transformer; four first tokens in it restore it."
    )
    published = (
        "Llama-2-13B on the first book of PG19, 65 thousand tokens: perplexity 5,158 with the last 1,024 tokens, 5.40 "
        "with the first 4 and the last 1,020."
    )
    experiment = (
        "The fixture recall-small: softmax attention, 4 layers of 4 heads, trained on recall tasks and Python source.",
        f"Python source code (python-stdlib, test split) in pieces of {LENGTH} tokens, {PIECES} drawn for each of "
        "three seeds.",
        f"Compared: dense attention, and a cache of {CACHE} tokens of which 0, 1, 2, 4 or 8 are the first of the text "
        "(policy streaming; keys keep the rotation of their own positions).",
        f"Measured: mean loss of the tokens that have more than {CACHE} tokens before them.",
    )
    rule = (
        "Damage is the loss with the window alone minus that of dense attention; restored is the share of it that four "
        f"first tokens take back. Holds if the damage is more than {DESTROYED:g} nat per token and more than "
        f"{RESTORED:.0%} is restored, both at the ends of their 95 % intervals. Does not hold if the damage is surely "
        f"less than {DESTROYED:g} nat, or the restored share surely less than {RESTORED:.0%}."
    )
    change = (
        "A model that leans on its first tokens: this one has 0.7 million parameters, was trained on 45 million tokens "
        "and reads bytes. The paper's texts are also longer than those that its models were trained on."
    )

    def measure(self, folder: Path, announce: Announce) -> Measurement:
        started = time.monotonic()
        subject = open_subject(FIXTURE)
        assert subject.tokenizer is not None
        text = "".join(document.text for document in open_corpus("python-stdlib", "text").documents("test"))
        dense: list[float] = []
        streaming: dict[str, list[float]] = {str(sinks): [] for sinks in SINKS}
        for seed in SEEDS:
            announce(f"pieces of seed {seed}")
            ids = pieces(text, subject.tokenizer, seed)
            dense.append(late_loss(subject.model, ids))
            for sinks in SINKS:
                with policy(subject.model, "streaming", sinks=sinks, window=CACHE - sinks):
                    streaming[str(sinks)].append(late_loss(subject.model, ids))
        data = {"dense": dense, "streaming": streaming}
        return Measurement(data, time.monotonic() - started, list(SEEDS), provenance())

    def decide(self, data: dict[str, Any]) -> Outcome:
        dense, alone, kept = data["dense"], data["streaming"]["0"], data["streaming"]["4"]
        damage = interval([a - b for a, b in zip(alone, dense, strict=True)], "seeds")
        seen = (
            f"Loss {_span(interval(dense, 'seeds'))} with dense attention, {_span(interval(alone, 'seeds'))} with the "
            f"last {CACHE} tokens, {_span(interval(kept, 'seeds'))} with the first 4 and the last {CACHE - 4}: damage "
            f"{_span(damage)} nat per token."
        )
        if damage.high < DESTROYED:
            return "does not hold", seen
        if damage.low <= 0:
            return "inconclusive", seen
        shares = [(a - c) / (a - b) for a, b, c in zip(alone, dense, kept, strict=True)]
        restored = interval(shares, "seeds")
        seen = f"{seen[:-1]}, of which {_span(restored)} is restored."
        if restored.high < RESTORED:
            return "does not hold", seen
        return ("holds" if damage.low > DESTROYED and restored.low > RESTORED else "inconclusive"), seen

    def figure(self, data: dict[str, Any]) -> LinesFigure:
        """Loss against the first tokens kept, at one size of the cache."""
        dense = interval(data["dense"], "seeds")
        kept = [interval(data["streaming"][str(sinks)], "seeds") for sinks in SINKS]
        lines = [Line(f"cache of {CACHE} tokens", kept), Line("dense", [dense] * len(SINKS), baseline=True)]
        label = "Loss against the number of first tokens in a cache of one size, beside that of dense attention"
        return LinesFigure("Loss, nats per token", [str(sinks) for sinks in SINKS], "first tokens kept", lines, label)


def pieces(text: str, tokenizer: PreTrainedTokenizerBase, seed: int) -> Tensor:
    """``(PIECES, LENGTH + 1)`` ids of pieces of a text, drawn without replacement."""
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False))
    count = len(ids) // (LENGTH + 1)
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:PIECES]
    return ids[: count * (LENGTH + 1)].view(count, LENGTH + 1)[chosen]


def late_loss(model: Any, ids: Tensor) -> float:
    """Mean loss of the tokens with more than ``CACHE`` tokens before them, in nats."""
    losses = token_losses(model, {"input_ids": ids[:, :-1], "targets": ids[:, 1:]})
    return float(losses[:, CACHE:].double().mean())


def _span(interval: Interval) -> str:
    return f"{interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f})"

"""The number that a measurement gives, with its interval, its unit and the samples behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plait.statistics.intervals import bootstrap, interval_method, score_interval

#: Under ``more`` of a score whose samples depend on the tokenizer: the digest of their texts.
SAMPLES = "samples_sha256"


@dataclass(frozen=True)
class Score:
    """One number that a measurement gives.

    Args:
        metric: what ``score`` is; a measurement gives each metric once.
        score: the value: a mean over the samples, by ``weights`` where there are some.
        low, high: its 95 % interval; both are ``score`` where there is none.
        interval: how it was found: ``Wilson``, ``bootstrap``, ``normal`` (1.96 standard errors), ``range`` (the lowest
            and the highest of some repeats) or ``none``.
        n: samples behind it.
        unit: of ``score``, such as ``nats per token``; empty for shares, which lie between 0 and 1.
        per_sample: the score of each sample, the same samples for every model; empty where there are none to compare.
        weights: size of each sample, such as its tokens; empty where each counts once.
        groups: means over the samples that share some facts, such as a needle's depth.
        more: further numbers, such as the accuracy at each position.
        chance: what a uniform guess scores, where that is known.
    """

    metric: str
    score: float
    low: float
    high: float
    interval: str = "none"
    n: int = 1
    unit: str = ""
    per_sample: Sequence[float] = ()
    weights: Sequence[float] = ()
    groups: Sequence[Mapping[str, Any]] = ()
    more: Mapping[str, Any] = field(default_factory=dict)
    chance: float | None = None

    @classmethod
    def of(cls, metric: str, per_sample: Sequence[float], **rest: Any) -> Score:
        """The mean of samples that count once each, with its interval."""
        low, high = score_interval(per_sample)
        return cls(
            metric,
            sum(per_sample) / len(per_sample),
            low,
            high,
            interval_method(per_sample),
            len(per_sample),
            per_sample=list(per_sample),
            **rest,
        )

    @classmethod
    def ratio(cls, metric: str, sums: Sequence[float], sizes: Sequence[float], **rest: Any) -> Score:
        """All ``sums`` over all ``sizes``, such as nats over tokens; the interval is the bootstrap's over the samples.

        Args:
            metric: what it is.
            sums: one for each sample.
            sizes: one for each sample, not all of them 0.
            rest: further fields.
        """
        each = [total / size if size else 0.0 for total, size in zip(sums, sizes, strict=True)]
        score = math.fsum(sums) / math.fsum(sizes)
        several = len(each) > 1
        low, high = bootstrap(each, weights=sizes) if several else (score, score)
        method = "bootstrap" if several else "none"
        return cls(
            metric, score, low, high, method, len(each), per_sample=each, weights=[float(s) for s in sizes], **rest
        )

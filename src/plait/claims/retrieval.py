"""Two claims of "Retrieval Head Mechanistically Explains Long-Context Factuality" (2404.15574), on a fixture."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch

from plait.claims.contract import Announce, Claim, Measurement, Outcome
from plait.data.tasks.niah import NeedleInHaystack
from plait.drawing.lines import Line, LinesFigure
from plait.evaluation.subject import open_subject
from plait.probes import masking_experiment, probe, task_runs
from plait.provenance import provenance
from plait.statistics.comparisons import interval
from plait.statistics.interval import Interval

FIXTURE = "fixture:recall-small"
LENGTH, QUESTIONS = 128, 40
SEEDS = (0, 1, 2)
#: Score from which a head counts, and from which it counts as strong (the paper's thresholds).
ANY, STRONG = 0.1, 0.5


class _RetrievalHeads(Claim):
    counts: ClassVar[tuple[int, ...]] = ()

    def measure(self, folder: Path, announce: Announce) -> Measurement:
        started = time.monotonic()
        model = open_subject(FIXTURE).model
        scores, masked = [], []
        for seed in SEEDS:
            announce(f"questions of seed {seed}")
            heads: Any = probe(model, "retrieval_heads")
            heads.detect(task_runs(NeedleInHaystack(length=LENGTH), QUESTIONS, seed))
            scores.append(heads.scores().tolist())
            fresh = task_runs(NeedleInHaystack(length=LENGTH), QUESTIONS, seed + len(SEEDS))
            if self.counts:
                rows = masking_experiment(model, fresh, heads.ranking(), self.counts, seed=seed)
                masked.append([asdict(row) for row in rows])
        data = {"scores": scores, "masked": masked}
        return Measurement(data, time.monotonic() - started, list(SEEDS), provenance())


class RetrievalHeadsAreSparse(_RetrievalHeads):
    """Few heads retrieve."""

    sentence = "Retrieval heads are sparse: few heads copy from the context, and about half never do."
    published = (
        "Heads with a score of 0.1 or more: 2.1 % to 6.2 % of 1,024 to 1,600 heads in six models; of 0.5 or more: "
        "about 0.5 %; above zero: 27 % to 51 %."
    )
    experiment = (
        "The fixture recall-small: softmax attention, 4 layers of 4 heads, trained on recall tasks.",
        f"Needles of two tokens in rows of {LENGTH} token ids (task niah), {QUESTIONS} questions for each of three "
        "seeds.",
        "Compared: all 16 heads.",
        "Measured: retrieval score, the share of the needle that a head's strongest weight points at while it is "
        "copied.",
    )
    rule = (
        "Of 16 heads two are one in eight, as 4 of 32 in the setting that the method's description proposes for small "
        "models. Holds if in every seed at most 2 heads score 0.5 or more and at least half score below 0.1. Does not "
        "hold if in every seed more than 2 score 0.5 or more, or fewer than half below 0.1."
    )
    change = (
        "A deeper model has more heads than the task needs: this one has four layers, and its last does the copying "
        "with all four heads. Sparsity in the paper's sense needs a model that also does other things."
    )

    def decide(self, data: dict[str, Any]) -> Outcome:
        flat = [torch.tensor(scores).flatten() for scores in data["scores"]]
        strong = [int((scores >= STRONG).sum()) for scores in flat]
        low = [int((scores < ANY).sum()) for scores in flat]
        most, half = len(flat[0]) // 8, len(flat[0]) / 2
        seen = (
            f"Of {len(flat[0])} heads, {_list(strong)} score 0.5 or more, {_list(low)} below 0.1 (one number a seed)."
        )
        good = [a <= most and b >= half for a, b in zip(strong, low, strict=True)]
        return ("holds" if all(good) else "does not hold" if not any(good) else "inconclusive"), seen

    def figure(self, data: dict[str, Any]) -> LinesFigure:
        """All heads, the highest score first."""
        scores = torch.tensor(data["scores"]).flatten(1)
        order = scores.mean(0).argsort(descending=True, stable=True).tolist()
        heads = len(data["scores"][0][0])
        values = [interval(scores[:, place].tolist(), "seeds", (0.0, 1.0)) for place in order]
        names = [f"{place // heads}.{place % heads}" for place in order]
        label = "Retrieval score of all heads of the fixture, the highest first"
        line = Line("retrieval score", values, joined=False)
        return LinesFigure("Retrieval score", names, "layer.head", [line], label, (0.0, 1.0))


class RetrievalHeadsAreCausal(_RetrievalHeads):
    """Masking them destroys recall, masking others does not."""

    counts = (1, 2, 3, 4)
    sentence = "Masking the retrieval heads destroys needle recall; masking as many random heads hardly changes it."
    published = (
        "Needle in a haystack with the top 50 heads masked: below 50 %; with 50 random heads: little effect. "
        "Extractive QA, F1: 56.7, with 50 and 100 masked 47.5 and 32.3, random 55.7 and 55.4."
    )
    experiment = (
        "The fixture recall-small: softmax attention, 4 layers of 4 heads, trained on recall tasks.",
        f"Needles of two tokens in rows of {LENGTH} token ids; heads are ranked on {QUESTIONS} questions, masked on "
        f"{QUESTIONS} others, three seeds.",
        "Compared: the 4 best heads masked while the answer is decoded (uniform weights), and 4 others drawn five "
        "times.",
        "Measured: share of the answer's tokens that the model says.",
    )
    rule = (
        "With 4 heads masked, means over seeds. Holds if the best heads cost more than 0.5 of recall and random ones "
        "less than 0.1, both at the ends of their 95 % intervals. Does not hold if the best heads surely cost less "
        "than 0.5, or random ones surely more than 0.1."
    )
    change = (
        "The random heads are drawn from the 12 others, as the paper leaves out its 100 best. On tasks that need no "
        "copying the paper finds little effect of either; the fixture knows no such task."
    )

    def decide(self, data: dict[str, Any]) -> Outcome:
        base = self._recall(data, 0, "none")
        top, others = (self._recall(data, max(self.counts), chosen) for chosen in ("top", "random"))
        seen = (
            f"Recall {_span(base)}; with the 4 best heads masked {_span(top)}, with 4 others {_span(others)} (mean "
            "over seeds)."
        )
        if top.low > base.mean - 0.5 or others.high < base.mean - 0.1:
            return "does not hold", seen
        sure = top.high < base.mean - 0.5 and others.low > base.mean - 0.1
        return ("holds" if sure else "inconclusive"), seen

    def figure(self, data: dict[str, Any]) -> LinesFigure:
        counts = [0, *self.counts]
        lines = [
            Line(name, [self._recall(data, count, chosen if count else "none") for count in counts])
            for name, chosen in (("best heads", "top"), ("random others", "random"))
        ]
        label = "Needle recall against the number of masked heads, for the best heads and for random others"
        return LinesFigure("Needle recall", [str(count) for count in counts], "masked heads", lines, label, (0.0, 1.0))

    @staticmethod
    def _recall(data: dict[str, Any], heads: int, chosen: str) -> Interval:
        values = [
            row["recall"] for rows in data["masked"] for row in rows if (row["heads"], row["chosen"]) == (heads, chosen)
        ]
        return interval(values, "seeds", (0.0, 1.0))


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _span(interval: Interval) -> str:
    return f"{interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f})"

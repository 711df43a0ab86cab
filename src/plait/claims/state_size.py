"""Based: recall grows with the size of the recurrent state (2402.18668, figure 2 and theorem 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plait.claims.contract import Outcome
from plait.claims.from_study import ClaimFromStudy
from plait.drawing.lines import Line, LinesFigure
from plait.statistics.comparisons import below
from plait.study.summary import Configuration, Guard

WIDTHS = "model.mixers.gla.expand_k"


class RecallGrowsWithTheState(ClaimFromStudy):
    """One mixer with keys made wider step by step: the larger its state, the more it recalls."""

    study = "recall-state-size"
    tracks = ("recall",)
    metrics = ("recall",)
    sentence = "Within one architecture, recall grows with the size of the recurrent state."
    published = (
        "MQAR over a sweep of widths (figure 2): every architecture's accuracy rises with its state, attention, whose "
        "state grows with the text, solves it; and any causal recurrent model needs a state of at least N bits for N "
        "pairs."
    )
    experiment = (
        "Gated Linear Attention of two layers, width 64, whose keys have 4, 8, 16, 32 or 64 channels; the "
        "transformer; three seeds each.",
        "MQAR with 4, 8 and 16 pairs in rows of 16, 32 and 64 tokens; 600 steps of 32 rows.",
        "Compared: the sizes of the state.",
        "Measured: share of asked keys whose value is the most likely token, mean over the three settings.",
    )
    rule = (
        "Holds if the recall of the largest state lies above that of the smallest, intervals apart, and no larger "
        "state lies below a smaller one, intervals apart. Does not hold if the largest lies below the smallest, "
        "intervals apart. Inconclusive where the transformer has not learnt the task."
    )
    change = (
        "More steps may let small states learn what they hold in principle: the sweep compares what is learnt in 600 "
        "steps at one learning rate, the paper's figure the best of several rates. Based's own mixer is not among "
        "them."
    )

    def judge(self, configurations: Sequence[Configuration], guards: Sequence[Guard]) -> Outcome:
        sizes = _by_width(configurations)
        recalls = [configuration.metrics["recall"] for configuration in sizes]
        seen = "Recall: " + ", ".join(
            f"{_channels(configuration)} channels {recall.mean:.3f} ({recall.low:.3f} to {recall.high:.3f})"
            for configuration, recall in zip(sizes, recalls, strict=True)
        )
        void = next((guard.message for guard in guards if not guard.learnt), None)
        if void or len(recalls) < 2:
            return "inconclusive", f"{void or 'Needs two sizes.'} {seen}."
        if below(recalls[-1], recalls[0]):
            return "does not hold", f"{seen}."
        falls = any(below(later, earlier) for i, earlier in enumerate(recalls) for later in recalls[i + 1 :])
        return ("holds" if below(recalls[0], recalls[-1]) and not falls else "inconclusive"), f"{seen}."

    def figure(self, data: dict[str, Any]) -> LinesFigure:
        configurations = self.configurations(data)
        sizes = _by_width(configurations)
        categories = [str(_channels(configuration)) for configuration in sizes]
        full = next(configuration for configuration in configurations if configuration.ratio == "full").metrics[
            "recall"
        ]
        lines = [
            Line("Gated Linear Attention", [configuration.metrics["recall"] for configuration in sizes]),
            Line("Transformer", [full] * len(sizes), joined=True, baseline=True),
        ]
        label = "Recall against the key channels of the state, and the transformer's"
        return LinesFigure(
            "Recall, accuracy on MQAR", categories, "key channels of the state", lines, label, (0.0, 1.0)
        )


def _by_width(configurations: Sequence[Configuration]) -> list[Configuration]:
    return sorted(
        (configuration for configuration in configurations if WIDTHS in configuration.fields),
        key=lambda configuration: configuration.fields[WIDTHS],
    )


def _channels(configuration: Configuration) -> int:
    return round(64 * configuration.fields[WIDTHS])

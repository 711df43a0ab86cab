"""HALO: layers chosen by importance convert better than evenly spaced ones (2601.22156), on a fixture."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from plait.claims.contract import Announce, Claim, Measurement, Outcome
from plait.conversion.run import convert
from plait.drawing.lines import Line, LinesFigure
from plait.evaluation.results import by_name
from plait.provenance import provenance
from plait.statistics.comparisons import interval
from plait.statistics.interval import Interval

FIXTURE = "fixture:recall-small"
SEEDS = (0, 1, 2)
WAYS = ("importance", "every")
#: Steps of alignment and of distillation: a small budget, in which the choice of layers must carry the recall.
OPTIONS = {
    "mixer": "gated_deltanet",
    "hype": False,
    "gate": "none",
    "trained": "converted",
    "batch_size": 16,
    "align_steps": 120,
    "distil_steps": 60,
    "save_every": 60,
}


class ChosenLayersBeatEvenOnes(Claim):
    """The same conversion twice, with layers kept by HALO's importance and by place."""

    sentence = "Keeping the layers that recall most as attention converts better than keeping evenly spaced ones."
    published = (
        "HypeNet-2B keeps 7 of 28 layers as attention, {2, 3, 6, 8, 9, 21, 25}, chosen by recall lost over language "
        "lost; the 8B model 9 of 36, {1, 2, 4, 6, 7, 10, 24, 33, 34}. A figure of even spacing under the same budget "
        "is not at hand."
    )
    experiment = (
        "The fixture recall-small (4 layers of softmax attention), two of its layers become Gated DeltaNet.",
        "Its own mixture of recall tasks and text: 120 steps of alignment and 60 of distillation, 16 rows each.",
        "Compared: the two kept layers chosen by importance, and layers 1 and 3; the same seed, steps and rows.",
        "Measured: mean accuracy on all recall tasks of the mixture, 64 held-out rows each, three seeds.",
    )
    rule = (
        "The difference of the mean recall, importance minus even, seed by seed. Holds if its 95 % interval lies "
        "above 0, does not hold if it lies below 0 or within 0.01 of it; inconclusive otherwise, and where both ways "
        "keep the same layers in every seed."
    )
    change = (
        "Four layers leave few choices: masking shows that the last layer does all the copying, and an even spacing "
        "keeps it too. A deeper teacher whose retrieval heads stand between the even places would tell more, and more "
        "seeds would narrow an interval that only just holds 0."
    )

    def measure(self, folder: Path, announce: Announce) -> Measurement:
        started = time.monotonic()
        runs: list[dict[str, Any]] = []
        for seed in SEEDS:
            for way in WAYS:
                announce(f"seed {seed}, {way}")
                done = convert(
                    FIXTURE,
                    "halo",
                    folder / f"{way}-{seed}",
                    ratio="1:1",
                    select=way,
                    options=OPTIONS,
                    samples=64,
                    seed=seed,
                    announce=announce,
                )
                after = {"recall": by_name(done.report["stages"][-1]["after"], "accuracy")}
                runs.append({"seed": seed, "way": way, "kept": done.kept, "after": after})
        seconds = time.monotonic() - started
        return Measurement({"runs": runs}, seconds, list(SEEDS), provenance())

    def decide(self, data: dict[str, Any]) -> Outcome:
        kept = {way: [run["kept"] for run in data["runs"] if run["way"] == way] for way in WAYS}
        recalls = {way: self._recalls(data, way) for way in WAYS}
        pairs = zip(recalls["importance"], recalls["every"], strict=True)
        difference = interval([ours - even for ours, even in pairs], "seeds")
        seen = (
            f"Kept by importance {kept['importance']}, by place {kept['every'][0]}. Mean recall "
            f"{_span(interval(recalls['importance'], 'seeds'))} and {_span(interval(recalls['every'], 'seeds'))}; the "
            f"difference {_span(difference)}."
        )
        if all(ours == even for ours, even in zip(kept["importance"], kept["every"], strict=True)):
            return "inconclusive", f"Both ways keep the same layers. {seen}"
        if difference.low > 0:
            return "holds", seen
        return ("does not hold" if difference.high < 0.01 else "inconclusive"), seen

    def figure(self, data: dict[str, Any]) -> LinesFigure:
        tasks = list(_recall_scores(data["runs"][0]["after"]))
        lines = [
            Line(
                {"importance": "by importance", "every": "evenly spaced"}[way],
                [
                    interval(
                        [_recall_scores(run["after"])[task] for run in data["runs"] if run["way"] == way],
                        "seeds",
                        (0.0, 1.0),
                    )
                    for task in tasks
                ],
                joined=False,
            )
            for way in WAYS
        ]
        label = "Recall after conversion by task, for layers kept by importance and by place"
        return LinesFigure("Accuracy", tasks, "task and length", lines, label, (0.0, 1.0))

    @staticmethod
    def _recalls(data: dict[str, Any], way: str) -> list[float]:
        tables = [_recall_scores(run["after"]) for run in data["runs"] if run["way"] == way]
        return [sum(scores.values()) / len(scores) for scores in tables]


def _recall_scores(after: dict[str, Any]) -> dict[str, float]:
    """Accuracies of the recall tasks, by task and length."""
    scores: dict[str, float] = after["recall"]
    return scores


def _span(interval: Interval) -> str:
    return f"{interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f})"

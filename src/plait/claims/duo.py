"""DuoAttention: a fraction of the heads, chosen by its optimisation, suffices for recall (2410.10819), on a fixture."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plait.claims.contract import Announce, Claim, Measurement, Outcome
from plait.data import TaskData
from plait.data.tasks.base import IGNORED, Task, TaskDataset, per_example_accuracy
from plait.data.tasks.key_value import KeyValueRetrieval
from plait.data.tasks.niah import NeedleInHaystack
from plait.drawing.lines import Line, LinesFigure
from plait.evaluation.subject import Subject, open_subject
from plait.evaluation.tasks import predict
from plait.evaluation.under_policy import under_policy
from plait.policies import FindHeadsOptions, find_heads, task_rows
from plait.provenance import provenance
from plait.statistics.comparisons import below, interval
from plait.statistics.interval import Interval

FIXTURE = "fixture:recall-small"
SEEDS = (0, 1, 2)
#: Shares of the kv heads that stay full; the rule looks at the middle one.
SHARES = (0.25, 0.5, 0.75)
RULED = 0.5
#: Random choices for each seed and share.
DRAWS = 5
ROWS = 32
#: Share of full attention's recall that suffices, and the least that full attention must reach itself.
ENOUGH, LEARNT = 0.95, 0.9
SINKS, RECENT = 4, 16
TRAINED = FindHeadsOptions(SINKS, RECENT, steps=100, batch_size=2, learning_rate=0.05)
TRAINED_ON = NeedleInHaystack(length=128, keys=2, queries=2)
DEPLOYED = {"sinks": SINKS, "recent": RECENT, "chunk": 32}
TASKS: dict[str, Task] = {
    "niah, 128 tokens": NeedleInHaystack(length=128),
    "niah, 256 tokens": NeedleInHaystack(length=256),
    "key_value, 128 tokens": KeyValueRetrieval(length=128),
}


class AFractionOfHeadsSuffices(Claim):
    """Heads kept full by trained gates, by chance, and all of them."""

    sentence = "With half of the kv heads full, chosen by their trained gates, and the others streaming, recall stays."
    published = (
        "Needle in a haystack: as good as full attention with 25 % full heads (Llama-2-7B-32K, multi-head) and with "
        "50 % (Llama-3-8B-1048K, grouped queries), where streaming heads keep 64 sinks and 256 recent tokens."
    )
    experiment = (
        "The fixture recall-small: softmax attention, 4 layers of 2 kv heads, 8 in all; streaming heads keep 4 sinks "
        "and 16 recent tokens and read prompts in chunks of 32.",
        "Gates are trained 100 steps of 2 rows of two needles (niah, 128 tokens), learning rate 0.05, weight of the "
        f"mean gate 0.05; asked are {ROWS} other rows each of niah at 128 and 256 tokens and key_value at 128.",
        f"Compared: 25, 50 and 75 % full heads by trained gates and by chance ({DRAWS} draws a seed), none, and full "
        "attention; three seeds of gates and questions.",
        "Measured: accuracy of the answers' tokens, read token by token, mean over the three tasks, as a share of full "
        "attention's on the same rows.",
    )
    rule = (
        "With 50 % full heads. Holds if the share of recall with the chosen heads lies at or above 0.95 and that with "
        "random heads below it, at the ends of the 95 % intervals (over seeds, and over all draws). Does not hold if "
        "the chosen heads' share lies below 0.95, or the random heads' at or above it. Inconclusive otherwise, and "
        "where full attention recalls less than 0.9."
    )
    change = (
        "Eight heads are few, and recall is nearly all that this model does: which heads are needed is clear-cut. A "
        "model with more heads, longer texts and other skills would ask more of the ranking."
    )

    def measure(self, folder: Path, announce: Announce) -> Measurement:
        started = time.monotonic()
        subject = open_subject(FIXTURE)
        gates, recalls = [], []
        for seed in SEEDS:
            announce(f"seed {seed}: gates")
            table = find_heads(subject.model, task_rows(TRAINED_ON, seed), TRAINED, announce=announce)
            gates.append([list(row) for row in table.values])
            recalls.append({"seed": seed, "chosen": "all", "share": 1.0, "recall": _recall(subject, seed)})
            rng = np.random.default_rng([seed, 0x64756F])
            shape = (len(table.values), len(table.values[0]))
            drawn = [rng.permutation(shape[0] * shape[1]).reshape(shape) / (shape[0] * shape[1]) for _ in range(DRAWS)]
            ways: list[tuple[str, float, Any]] = [("none", 0.0, "streaming")]
            for share in SHARES:
                ways += [("trained", share, gates[-1]), *(("random", share, draw.tolist()) for draw in drawn)]
            for chosen, share, heads in ways:
                announce(f"seed {seed}: {_percent(share)} full heads, {chosen}")
                options = {"heads": heads, "sparsity": 1 - share, **DEPLOYED}
                with under_policy(subject, "duo_attention", options) as (bound, _):
                    found = _recall(bound, seed)
                recalls.append({"seed": seed, "chosen": chosen, "share": share, "recall": found})
        data = {"gates": gates, "recalls": recalls}
        return Measurement(data, time.monotonic() - started, list(SEEDS), provenance())

    def decide(self, data: dict[str, Any]) -> Outcome:
        full = interval([_mean(row) for row in data["recalls"] if row["chosen"] == "all"], "seeds", (0.0, 1.0))
        kept = {
            (chosen, share): interval(_shares_of(data, chosen, share), "seeds", (0.0, np.inf))
            for chosen in ("trained", "random")
            for share in SHARES
        }
        none = interval(_shares_of(data, "none", 0.0), "seeds", (0.0, np.inf))
        seen = (
            f"Full attention recalls {_span(full)}; of that stays {_span(none)} where all heads stream; "
            + "; ".join(
                f"with {_percent(share)} full heads {_span(kept['trained', share])}, by chance "
                f"{_span(kept['random', share])}"
                for share in SHARES
            )
        )
        trained, random = kept["trained", RULED], kept["random", RULED]
        if full.mean < LEARNT:
            return "inconclusive", f"{seen}."
        if trained.high < ENOUGH or random.low >= ENOUGH:
            return "does not hold", f"{seen}."
        sure = trained.low >= ENOUGH and random.high < ENOUGH and below(random, trained)
        return ("holds" if sure else "inconclusive"), f"{seen}."

    def figure(self, data: dict[str, Any]) -> LinesFigure:
        none = interval(_shares_of(data, "none", 0.0), "seeds", (0.0, np.inf))
        lines = [
            Line(name, [none, *(interval(_shares_of(data, chosen, share), "seeds", (0.0, np.inf)) for share in SHARES)])
            for name, chosen in (("trained gates", "trained"), ("by chance", "random"))
        ]
        full = Interval(mean=1.0, low=1.0, high=1.0, n=1, over="none")
        categories = [_percent(share) for share in (0.0, *SHARES)]
        lines.append(Line("full attention", [full] * len(categories), baseline=True))
        label = "Share of full attention's recall against the share of full kv heads, chosen by gates and by chance"
        return LinesFigure("Share of full attention's recall", categories, "full kv heads", lines, label, (0.0, 1.1))


def _recall(subject: Subject, seed: int) -> dict[str, float]:
    """Accuracy of each task on rows of this seed."""
    found = {}
    for name, task in TASKS.items():
        dataset = TaskDataset(task, ROWS, seed, "test")
        batch = TaskData.collate([dataset[row] for row in range(ROWS)])
        targets: torch.Tensor = batch["targets"]
        first = int((targets != IGNORED).any(0).nonzero()[0])
        found[name] = per_example_accuracy(predict(subject, batch["input_ids"], first), targets).mean().item()
    return found


def _mean(row: dict[str, Any]) -> float:
    """Mean recall of all tasks."""
    values: Sequence[float] = list(row["recall"].values())
    return sum(values) / len(values)


def _shares_of(data: dict[str, Any], chosen: str, share: float) -> list[float]:
    """Recall as shares of full attention's, by seed and draw."""
    full = {row["seed"]: _mean(row) for row in data["recalls"] if row["chosen"] == "all"}
    rows = [row for row in data["recalls"] if (row["chosen"], row["share"]) == (chosen, share)]
    return [_mean(row) / full[row["seed"]] for row in rows]


def _span(interval: Interval) -> str:
    return f"{interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"

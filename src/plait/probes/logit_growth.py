"""How attention logits grow with the context: what breaks first when a model reads more than it was trained on.

For each query: the largest logit and the logarithm of the sum of exponentials of all, averaged over the queries of a
range of positions. With logits of one size the second grows with the logarithm of the context, so that the largest
weight, ``exp(largest - log_sum_exp)``, thins out. The measure is plait's own; the dilution that it shows is that of
Nakanishi, "Scalable-Softmax Is Superior for Attention" (2501.19399).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from plait.drawing.lines import Line, LinesFigure, lines_svg
from plait.errors import OptionError
from plait.ops.softmax import log_sums
from plait.options import Options
from plait.probes.watching import AttentionProbe, logits
from plait.runtime.call import Call
from plait.runtime.store import Keys
from plait.statistics.interval import Interval


@dataclass(frozen=True)
class GrowthOptions(Options):
    """Options of the probe.

    Args:
        queries: per range of positions, evenly spaced; all where the range has fewer.

    Raises:
        OptionError: no query.
    """

    queries: int = 16

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise OptionError(f"logit_growth: queries={self.queries} must be at least 1.")


class LogitGrowth(AttentionProbe):
    """Largest logit and log-sum-exp by layer, head and range of positions: 1, 2 to 3, 4 to 7, and so on.

    Rows of ``queries`` queries are held at a time.
    """

    Options = GrowthOptions
    columns: ClassVar = {
        "layer": "int64",
        "head": "int64",
        "first": "int64",
        "last": "int64",
        "largest": "float64",
        "log_sum_exp": "float64",
        "largest_weight": "float64",
        "queries": "int64",
    }
    ranked = "log_sum_exp"
    latest = "first"

    def __init__(self, model: nn.Module, options: Any = None) -> None:
        super().__init__(model, options)
        self._sums: dict[tuple[int, int], Tensor] = {}
        self._counts: dict[tuple[int, int], int] = {}

    def show(self, call: Call, keys: Keys) -> None:
        if call.lengths is not None:
            raise OptionError("logit_growth: give texts of one length, without padding.")
        if call.scoring.sink_logits is not None:
            raise OptionError(
                "logit_growth: this model's heads have a sink without a key, which the measure leaves out."
            )
        start = int(call.positions[0, 0]) + 1  # keys that the first query sees
        for power in range(64):
            low, high = max(2**power, start), min(2 ** (power + 1) - 1, start + call.q.shape[2] - 1)
            if 2**power > start + call.q.shape[2] - 1:
                return
            if low > high:
                continue
            chosen = torch.linspace(low, high, min(self.options.queries, high - low + 1)).round().long() - start
            rows = logits(call, keys, call.q[:, :, chosen], call.positions[:, chosen])
            largest, total = rows.amax(-1).double(), log_sums(rows.double())
            values = torch.stack([largest, total, (largest - total).exp()], -1).sum((0, 2)).cpu()
            place = (call.layer.index, power)
            self._sums[place] = values + self._sums.get(place, torch.zeros_like(values))
            self._counts[place] = self._counts.get(place, 0) + len(chosen) * call.q.shape[0]

    def records(self) -> Sequence[Mapping[str, Any]]:
        return [
            {
                "layer": layer,
                "head": head,
                "first": 2**power,
                "last": 2 ** (power + 1) - 1,
                "largest": float(largest),
                "log_sum_exp": float(total),
                "largest_weight": float(weight),
                "queries": self._counts[layer, power],
            }
            for layer, power in sorted(self._sums)
            for head, (largest, total, weight) in enumerate(self._sums[layer, power] / self._counts[layer, power])
        ]

    def sentence(self) -> str:
        means = self.table().groupby("first")[["log_sum_exp", "largest_weight"]].mean()
        start, end = means.iloc[0], means.iloc[-1]
        return (
            f"From {means.index[0]:,} to {means.index[-1]:,} or more keys in sight, the log-sum-exp of a head's logits "
            f"goes from {start['log_sum_exp']:.2f} to {end['log_sum_exp']:.2f} and its largest weight from "
            f"{start['largest_weight']:.2f} to {end['largest_weight']:.2f}, on average."
        )

    def svg(self) -> str:
        """The mean log-sum-exp of each layer's heads (of eight layers, evenly spaced, where there are more)."""
        table = self.table()
        layers = sorted(table["layer"].unique())
        if len(layers) > 8:
            layers = [layers[round(i * (len(layers) - 1) / 7)] for i in range(8)]
        starts = sorted(table["first"].unique())
        means = table.groupby(["layer", "first"])["log_sum_exp"].mean()
        lines = [
            Line(
                f"layer {layer}",
                [_exact(float(means[layer, start])) if (layer, start) in means.index else None for start in starts],
            )
            for layer in layers
        ]
        figure = LinesFigure(
            "Log-sum-exp of the logits, mean over heads",
            [str(start) for start in starts],
            "keys in sight, from",
            lines,
            "Log-sum-exp of attention logits against the number of keys in sight, by layer",
        )
        return lines_svg(figure)


def _exact(value: float) -> Interval:
    return Interval(mean=value, low=value, high=value, n=1, over="none")

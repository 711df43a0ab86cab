"""Attention sinks: first tokens that heads look at without need of them.

The score of a key is that of Gu et al., "When Attention Sink Emerges in Language Models" (2410.10781), in the form of
Wong et al., "On the Existence and Behaviour of Secondary Attention Sinks" (2512.22213)::

    score(k) = 1 / (T - k + 1) * sum over i >= k of A[i, k]          (1-based)

the mean weight that key k gets from the queries that see it. The *primary* sink is the key with the largest score among
the first few, averaged over layers and heads. Their detection by hidden states is another probe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from plait.drawing.heat import heat_svg
from plait.errors import OptionError
from plait.options import Options
from plait.probes.watching import AttentionProbe, weights
from plait.runtime.call import Call
from plait.runtime.store import Keys


@dataclass(frozen=True)
class SinkOptions(Options):
    """Options of the probe.

    Args:
        candidates: first tokens among which the primary sink is looked for; 2 for plain text, 3 with a chat template.
        threshold: score from which a head counts as one that has a sink (0.3 in Gu et al.).
        block: queries whose weights are held at a time.

    Raises:
        OptionError: a number out of range.
    """

    candidates: int = 2
    threshold: float = 0.3
    block: int = 64

    def __post_init__(self) -> None:
        if self.candidates < 1 or self.block < 1:
            raise OptionError(
                f"attention_sinks: candidates={self.candidates} and block={self.block} must be at least 1."
            )
        if not 0 < self.threshold < 1:
            raise OptionError(f"attention_sinks: threshold={self.threshold} must lie between 0 and 1.")


class AttentionSinks(AttentionProbe):
    """Sink score by layer and head: the mean weight that the first tokens get from the queries that see them.

    The weights of ``block`` queries are held at a time, never T x T. Passes that go on from a cache are refused, since
    the score needs all queries of a text.
    """

    Options = SinkOptions
    columns: ClassVar = {
        "layer": "int64",
        "head": "int64",
        "token": "int64",
        "score": "float64",
        "primary": "bool",
        "sink": "bool",
    }
    ranked = "score"

    def __init__(self, model: nn.Module, options: Any = None) -> None:
        super().__init__(model, options)
        self._sums: dict[int, Tensor] = {}
        self._rows: dict[int, int] = {}

    def show(self, call: Call, keys: Keys) -> None:
        if call.phase != "prefill":
            raise OptionError("attention_sinks scores whole texts: pass each in one call, without a cache from before.")
        lengths = call.lengths
        batch, heads, length = call.q.shape[:3]
        totals = torch.full((batch,), length, device=call.q.device) if lengths is None else lengths
        first = min(self.options.candidates, int(totals.min()))
        if first < self.options.candidates:
            raise OptionError(f"attention_sinks: a text of {first} tokens is shorter than {self.options.candidates}.")
        sums = torch.zeros(batch, heads, first, dtype=torch.float64, device=call.q.device)
        for start in range(0, length, self.options.block):
            part = slice(start, start + self.options.block)
            real = None if call.real is None else call.real[:, part]
            rows = weights(call, keys, call.q[:, :, part], call.positions[:, part], real)
            sums += rows[..., :first].sum(2)
        seen = totals[:, None] - torch.arange(first, device=call.q.device)
        scores = (sums / seen[:, None]).sum(0).cpu()
        index = call.layer.index
        self._sums[index] = scores + self._sums.get(index, torch.zeros_like(scores))
        self._rows[index] = self._rows.get(index, 0) + batch

    def scores(self) -> Tensor:
        """``(layers, heads, candidates)``: the mean over rows.

        Raises:
            OptionError: layers with different numbers of heads.
        """
        parts = [self._sums[index] / self._rows[index] for index in sorted(self._sums)]
        if len({part.shape for part in parts}) > 1:
            raise OptionError("attention_sinks: the layers differ in heads; read the table instead.")
        return torch.stack(parts)

    @property
    def primary(self) -> int:
        """Position of the primary sink, from 0."""
        means = torch.stack([self._sums[index].mean(0) / self._rows[index] for index in self._sums])
        return int(means.mean(0).argmax())

    def records(self) -> Sequence[Mapping[str, Any]]:
        if not self._sums:
            return []
        primary = self.primary
        return [
            {
                "layer": layer,
                "head": head,
                "token": token,
                "score": float(score),
                "primary": token == primary,
                "sink": float(score) > self.options.threshold,
            }
            for layer in sorted(self._sums)
            for head, row in enumerate(self._sums[layer] / self._rows[layer])
            for token, score in enumerate(row)
        ]

    def sentence(self) -> str:
        table = self.table()
        heads = len(table) // self.options.candidates
        first = table[table["primary"]]
        share, above = float(first["score"].mean()), int(first["sink"].sum())
        where = f"Token {self.primary} gets {share:.0%} of the weight of the queries that see it, on average over heads"
        return (
            f"{where}; {above} of {heads} heads give it more than {self.options.threshold:.0%} and have a sink there."
        )

    def svg(self) -> str:
        """The primary sink's score by layer and head."""
        return heat_svg(
            self.scores()[..., self.primary].tolist(),
            f"Weight on token {self.primary}, mean over the queries that see it",
            rows="layer",
            columns="head",
            high=1.0,
        )

"""Attention entropy: how many tokens a head spreads its weight over.

The entropy of one query's weights, ``-sum over keys of a log a`` in nats, is 0 where a head looks at one token and
``log n`` where it looks at all n tokens in sight alike. Zhai et al., "Stabilizing Transformer Training by Preventing
Attention Entropy Collapse" (2303.06296), average it over the queries of a text; here they are averaged over ranges of
positions, since the largest possible entropy grows with the position.
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
class EntropyOptions(Options):
    """Options of the probe.

    Args:
        block: queries whose weights are held at a time.

    Raises:
        OptionError: no query.
    """

    block: int = 64

    def __post_init__(self) -> None:
        if self.block < 1:
            raise OptionError(f"attention_entropy: block={self.block} must be at least 1.")


class AttentionEntropy(AttentionProbe):
    """Entropy by layer, head and number of tokens in sight: 1, 2 to 3, 4 to 7, and so on.

    ``uniform`` is the entropy of equal weights over the same queries. The weights of ``block`` queries are held at a
    time, never T x T.
    """

    Options = EntropyOptions
    columns: ClassVar = {
        "layer": "int64",
        "head": "int64",
        "first": "int64",
        "last": "int64",
        "entropy": "float64",
        "uniform": "float64",
        "queries": "int64",
    }
    ranked = "entropy"
    latest = "first"

    def __init__(self, model: nn.Module, options: Any = None) -> None:
        super().__init__(model, options)
        self._entropy: dict[tuple[int, int], Tensor] = {}  # sums by layer and power of two, a number a head
        self._uniform: dict[tuple[int, int], float] = {}
        self._queries: dict[tuple[int, int], int] = {}

    def show(self, call: Call, keys: Keys) -> None:
        if call.scoring.sink_logits is not None:
            raise OptionError(
                "attention_entropy: this model's heads have a sink without a key, so their weights do not sum to 1."
            )
        for start in range(0, call.q.shape[2], self.options.block):
            part = slice(start, start + self.options.block)
            positions, real = call.positions[:, part], None if call.real is None else call.real[:, part]
            rows = weights(call, keys, call.q[:, :, part], positions, real)
            self._add(call.layer.index, torch.special.entr(rows).sum(-1).double(), positions + 1, real)

    def _add(self, layer: int, entropy: Tensor, seen: Tensor, real: Tensor | None) -> None:
        """Add queries: ``entropy`` ``(B, H, W)``, ``seen`` ``(B, W)`` tokens in sight of each."""
        powers = torch.frexp(seen.double()).exponent - 1
        for power in range(int(powers.max()) + 1):
            chosen = powers == power if real is None else (powers == power) & real
            if not bool(chosen.any()):
                continue
            place = (layer, power)
            total = (entropy * chosen[:, None]).sum((0, 2)).cpu()
            self._entropy[place] = total + self._entropy.get(place, torch.zeros_like(total))
            self._uniform[place] = float(seen[chosen].double().log().sum()) + self._uniform.get(place, 0.0)
            self._queries[place] = int(chosen.sum()) + self._queries.get(place, 0)

    def records(self) -> Sequence[Mapping[str, Any]]:
        return [
            {
                "layer": layer,
                "head": head,
                "first": 2**power,
                "last": 2 ** (power + 1) - 1,
                "entropy": float(entropy),
                "uniform": self._uniform[layer, power] / self._queries[layer, power],
                "queries": self._queries[layer, power],
            }
            for layer, power in sorted(self._entropy)
            for head, entropy in enumerate(self._entropy[layer, power] / self._queries[layer, power])
        ]

    def shares(self) -> list[list[float]]:
        """Entropy of every query as a share of that of equal weights, by layer and head.

        Raises:
            OptionError: nothing but single tokens was read.
        """
        layers = sorted({layer for layer, _ in self._entropy})
        uniform = {layer: sum(u for (one, _), u in self._uniform.items() if one == layer) for layer in layers}
        if not layers or min(uniform.values()) == 0:
            raise OptionError("attention_entropy: read a text of two tokens or more first.")
        return [
            (torch.stack([e for (one, _), e in self._entropy.items() if one == layer]).sum(0) / uniform[layer]).tolist()
            for layer in layers
        ]

    def sentence(self) -> str:
        shares = torch.tensor(self.shares())
        layers = sorted({layer for layer, _ in self._entropy})
        heads = [
            f"layer {layers[place // shares.shape[1]]}, head {place % shares.shape[1]} ({shares.flatten()[place]:.0%})"
            for place in (int(shares.argmin()), int(shares.argmax()))
        ]
        return (
            f"Heads reach {float(shares.mean()):.0%} of the entropy of equal weights on average: the narrowest is "
            f"{heads[0]}, the widest {heads[1]}."
        )

    def svg(self) -> str:
        """Entropy by layer and head, as a share of that of equal weights."""
        return heat_svg(
            self.shares(), "Attention entropy, as a share of equal weights", rows="layer", columns="head", high=1.0
        )

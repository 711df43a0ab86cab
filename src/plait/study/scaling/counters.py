"""Parameters and training FLOPs of four architectures, by formula.

Source: "Scaling Laws for Linear Complexity Language Models" (2406.16690), appendix. A multiply-accumulate is 2 FLOPs, a
backward pass costs two forward passes. Softmax attention is counted over all ``n * n`` pairs, causal or not. Embedding
and head are left out, as are the norms' weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from plait.errors import OptionError, nearest

Architecture = Literal["llama", "tnl", "hgrn2", "cosformer2"]

#: Forward and backward pass over the forward pass.
TRAINING = 3
#: Terms of the leading form of training, C = 72 b n l d^2 F: those with 1/h, and those with 1/d.
_LEADING: dict[str, tuple[float, float]] = {
    "llama": (0.0, 5 / 18),
    "tnl": (1 / 2, 5 / 18),
    "hgrn2": (1 / 3, 29 / 72),
    "cosformer2": (3 / 4, 23 / 72),
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model.

    Args:
        layers: depth l.
        width: d.
        heads: h.
        glu_width: g, inner width of the gated linear unit; None: 8 d / 3.
        gate_rank: t, rank of the output gate of TNL and cosFormer2; None: d / h.
        block: B, tokens per block of the linear attention; None: d / h.
        position_width: e, width of cosFormer2's recurrence over the embeddings; None: d / h.
    """

    layers: int
    width: int
    heads: int
    glu_width: int | None = None
    gate_rank: int | None = None
    block: int | None = None
    position_width: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise OptionError(f"Shape: {name} = {value}: must be at least 1.")

    def sizes(self) -> tuple[float, float, float, float, float, float]:
        """d, h, g, t, B and e with their defaults."""
        head = self.width / self.heads
        glu = 8 * self.width / 3 if self.glu_width is None else self.glu_width
        rank, block, position = (
            head if own is None else own for own in (self.gate_rank, self.block, self.position_width)
        )
        return self.width, self.heads, glu, rank, block, position


def parameters(architecture: Architecture, shape: Shape, leading: bool = False) -> float:
    """Parameters without embedding and head.

    Args:
        architecture: one of the four.
        shape: sizes of the model.
        leading: the form with 8 d / 3 for the gated linear unit and d / h for all ranks, instead of the given ones.

    Raises:
        OptionError: an architecture that is not one of the four.
    """
    _check(architecture)
    shape = Shape(shape.layers, shape.width, shape.heads) if leading else shape
    d, _, g, t, _, e = shape.sizes()
    count = shape.layers * (4 * d**2 + 3 * d * g)
    if architecture in ("tnl", "cosformer2"):
        count += shape.layers * 2 * d * t
    if architecture == "hgrn2":
        count += shape.layers * d
    if architecture == "cosformer2":
        count += d * e
    return count


def training_flops(
    architecture: Architecture, shape: Shape, context: int, batch: int = 1, leading: bool = False
) -> float:
    """FLOPs of one training step.

    Args:
        architecture: one of the four.
        shape: sizes of the model.
        context: tokens n per sequence.
        batch: sequences b.
        leading: the paper's C = 72 b n l d^2 F, of which its cost table is made, instead of the sum of all terms. It
            drops the arithmetic of the softmax itself and cosFormer2's recurrence over the embeddings.

    Raises:
        OptionError: an architecture that is not one of the four.
    """
    _check(architecture)
    if leading:
        return 72 * batch * context * shape.layers * shape.width**2 * leading_factor(architecture, shape, context)
    forward = shape.layers * layer_forward_flops(architecture, shape, context)
    if architecture == "cosformer2":
        d, *_, e = shape.sizes()
        forward += 4 * context * d * e
    return TRAINING * batch * forward


def hybrid_training_flops(
    layers: Sequence[Architecture], shape: Shape, context: int, batch: int = 1, leading: bool = False
) -> float:
    """FLOPs of one training step of a model whose layers differ: the sum over its layers.

    The paper has no hybrids; adding up is plait's extension.

    Args:
        layers: architecture of each layer; ``shape.layers`` is not read.
        shape, context, batch, leading: as for :func:`training_flops`.
    """
    if leading:
        factors = sum(leading_factor(layer, shape, context) for layer in layers)
        return 72 * batch * context * shape.width**2 * factors
    return TRAINING * batch * sum(layer_forward_flops(layer, shape, context) for layer in layers)


def leading_factor(architecture: Architecture, shape: Shape, context: int) -> float:
    """F of the leading form: what a layer costs over its projections alone.

    Raises:
        OptionError: an architecture that is not one of the four.
    """
    _check(architecture)
    by_heads, by_width = _LEADING[architecture]
    pairs = context / (6 * shape.width) if architecture == "llama" else 0.0
    return 1 + pairs + by_heads / shape.heads + by_width / shape.width


def layer_forward_flops(architecture: Architecture, shape: Shape, context: int) -> float:
    """All terms of one layer's forward pass over one sequence: token mixer and gated linear unit.

    Raises:
        OptionError: an architecture that is not one of the four.
    """
    _check(architecture)
    n = context
    d, h, g, t, block, _ = shape.sizes()
    glu = 6 * n * d * g + n * g
    projections = 8 * n * d**2
    if architecture == "llama":
        return projections + 4 * n**2 * d + 3 * n**2 * h + 4 * n * d + glu
    gate = 5 * n * d if architecture == "hgrn2" else 4 * n * t * d + 2 * n * d
    doubled = 2 if architecture == "cosformer2" else 1  # its map of queries and keys doubles the state
    state = doubled * (4 * n * d**2 / h + n * d**2 / (block * h))
    within = (2 + 2 * doubled) * n * block * d + n * block * h
    return projections + state + within + gate + glu


def _check(architecture: str) -> None:
    known = get_args(Architecture)
    if architecture not in known:
        raise OptionError(f"There are no formulas for {architecture!r}.{nearest(architecture, known)}")

"""Inputs for the recurrences and comparisons between backends."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from plait import ops

DECAYS = ("none", "constant", "head", "channel")
LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 130)


@dataclass
class Inputs:
    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor | None
    log_decay: Tensor | None
    state: Tensor | None

    def tensors(self) -> list[Tensor]:
        return [x for x in (getattr(self, f.name) for f in fields(self)) if x is not None]

    def leaves(self) -> Inputs:
        return Inputs(*(None if x is None else x.detach().clone().requires_grad_() for x in vars(self).values()))

    def part(self, first: int, last: int, state: Tensor | None) -> Inputs:
        def cut(x: Tensor | None) -> Tensor | None:
            return x if x is None or x.dim() == 1 else x[:, first:last]

        return Inputs(*(cut(x) for x in (self.q, self.k, self.v, self.beta, self.log_decay)), state)

    def run(self, **options: object) -> tuple[Tensor, Tensor]:
        if self.beta is None:
            return ops.linear_attention(self.q, self.k, self.v, self.log_decay, state=self.state, **options)
        return ops.delta_rule(self.q, self.k, self.v, self.beta, self.log_decay, state=self.state, **options)


def inputs(
    T: int,
    *,
    B: int = 2,
    H: int = 2,
    HV: int = 4,
    K: int = 5,
    V: int = 3,
    decay: str = "head",
    delta: bool = False,
    states: int | None = -1,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Inputs:
    """Random inputs; ``states`` is the number of initial states (-1 for one a row, None for no state)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    shapes = {"constant": (HV,), "head": (B, T, HV), "channel": (B, T, HV, K)}
    log_decay = None if decay == "none" else F.logsigmoid(normal(*shapes[decay]) + 1)
    made = (
        normal(B, T, H, K),
        F.normalize(normal(B, T, H, K), dim=-1),
        normal(B, T, HV, V),
        2 * normal(B, T, HV).sigmoid() if delta else None,
        log_decay,
        None if states is None else normal(B if states < 0 else states, HV, K, V),
    )
    return Inputs(*(None if x is None else x.to(dtype) for x in made))


def with_gradients(given: Inputs, **options: object) -> list[Tensor]:
    """Output, state, and gradients of all inputs for a fixed random cotangent."""
    leaves = given.leaves()
    o, state = leaves.run(**options)
    generator = torch.Generator().manual_seed(7)
    loss = sum(
        (y * torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)).sum() for y in (o, state)
    )
    return [o.detach(), state.detach(), *torch.autograd.grad(loss, leaves.tensors(), materialize_grads=True)]


def assert_equal(found: list[Tensor], expected: list[Tensor], tolerance: float, note: object = "") -> None:
    """Each tensor equals the other within ``tolerance`` of its largest entry (at least 1)."""
    assert len(found) == len(expected)
    for index, (x, y) in enumerate(zip(found, expected, strict=True)):
        assert (x.shape, x.dtype) == (y.shape, y.dtype), (note, index)
        error = (x - y).abs().max() / y.abs().max().clamp(min=1)
        assert error <= tolerance, (note, index, float(error))  # NaN fails too

"""A mixer that learns without a gradient, for the contract of running state: none of the catalogue does yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from plait import catalog
from plait.catalog import Method
from plait.mixers import Context, Cost, Dims, LayerState, Mixer
from plait.options import Options

NAME = "centred"


class Centred(Mixer):
    """``W (x_t - m)`` with a moving average m of all tokens' inputs, a count of tokens, and a loss on their size."""

    def __init__(self, dims: Dims, options: Options, layer: int) -> None:
        super().__init__(dims, options, layer)
        d = dims.hidden_size
        self.o_proj = nn.Linear(d, d, bias=False)
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("total", torch.zeros(d))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))
        self.steps = 0

    def init_parameters(self, std: float) -> None:
        for buffer in (self.mean, self.total, self.count, self.seen):
            buffer.zero_()

    def forward(self, x: Tensor, context: Context) -> Tensor:
        if context.update_running_state:
            self.gather(context.zero_padding(x).detach(), context.real)
        context.add_loss("size", x.square().mean(), 0.1)
        return self.o_proj(x - self.mean)

    def gather(self, x: Tensor, real: Tensor | None) -> None:
        """Add tokens to what the next step averages."""
        self.total.add_(x.sum((0, 1)))
        self.count.add_(x[..., 0].numel() if real is None else real.sum())

    def after_step(self) -> None:
        self.steps += 1
        self.seen.add_(self.count)
        if self.count:
            self.mean.lerp_(self.total / self.count, 0.5)
        self.total.zero_()
        self.count.zero_()

    def new_state(self) -> LayerState:
        return LayerState({})

    @classmethod
    def cost(cls, dims: Dims, T: int, options: Any, *, cache_dtype: torch.dtype = torch.bfloat16) -> Cost:
        """Nothing: no token reads another."""
        return Cost(0, 0, 0)

    def effective_weights(self, x: Tensor, context: Context | None = None) -> Tensor:
        return torch.eye(x.shape[1], dtype=x.dtype).expand(x.shape[0], 1, -1, -1)


@contextmanager
def installed() -> Iterator[None]:
    """The catalogue with this mixer as ``centred``."""
    rows = catalog._all()
    rows["mixer", NAME] = Method(NAME, "mixer", f"{__name__}:Centred", "Centred", "", "constant", work="T")
    try:
        yield
    finally:
        del rows["mixer", NAME]

"""HGRN2: HGRN with a matrix state; the key is the complement of the forget gate (2404.07904)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.mixers.base import Dims
from plait.mixers.context import Context
from plait.mixers.linear import Heads, LinearMixer, LinearOptions, Recurrence, default_heads, linear, split_heads
from plait.mixers.lower_bounds import log_forget_gate
from plait.nn import RMSNorm


@dataclass(frozen=True)
class HGRN2Options(LinearOptions):
    """Options of HGRN2.

    Args:
        num_heads: heads H. None: ``hidden_size // expand_ratio``, or, if that is None too, the fewest heads (two at
            least) that divide ``hidden_size`` into heads of at most 128 channels.
        expand_ratio: key channels of a head. None: ``hidden_size // num_heads``.
        use_lower_bound: bound the forget gates from below by the model's parameter.
        norm_eps: epsilon of the norm of the read-out; None: the model's. 1e-5 is what every model that
            flash-linear-attention trained has, whatever its configuration says.
        use_short_conv: convolve the queries, the forget gate and the input.
        conv_size: taps of the convolution.
    """

    method: ClassVar[str] = "hgrn2"
    num_heads: int | None = None
    expand_ratio: int | None = None
    use_lower_bound: bool = True
    norm_eps: float | None = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("num_heads", "expand_ratio", "norm_eps")

    def heads(self, dims: Dims) -> Heads:
        size, H, E = dims.hidden_size, self.num_heads, self.expand_ratio
        if H is None and E is not None:
            self.require(size % E == 0, "expand_ratio", f"does not divide hidden_size {size}; set num_heads as well")
            H = size // E
        H = H or default_heads(size, 128)
        self.require(size % H == 0, "num_heads", f"must divide hidden_size {size}")
        return Heads(H, H, E or size // H, size // H)


class HGRN2(LinearMixer):
    """``S_t = diag(f_t) S_{t-1} + (1 - f_t) i_t^T``, read with ``silu(W_q x_t)``.

    ``f = lb + (1 - lb) sigmoid(W_f x)`` per key channel and ``i = W_i x``. The read-out of all heads is normed
    together, over the whole width; there is no output gate.
    """

    Options = HGRN2Options
    options: HGRN2Options
    flops_per_element = 7
    bounds: ClassVar[str] = "hgrn2_lower_bounds"

    def __init__(self, dims: Dims, options: HGRN2Options, layer: int) -> None:
        super().__init__(dims, options, layer)
        d, heads = dims.hidden_size, self.heads
        self.q_proj = linear(d, heads.key_width)
        self.f_proj = linear(d, heads.key_width)
        self.i_proj = linear(d, heads.value_width)
        self.add_convolutions(False, q=heads.key_width, f=heads.key_width, i=heads.value_width)
        self.g_norm = RMSNorm(heads.value_width, options.norm_eps or dims.norm_eps)
        self.o_proj = linear(heads.value_width, d)

    @classmethod
    def shared_parameters(cls, dims: Dims, options: Any) -> dict[str, Tensor]:
        width = options.heads(dims).key_width
        return {cls.bounds: torch.zeros(dims.num_layers, width)} if options.use_lower_bound else {}

    def recurrence(self, x: Tensor, context: Context) -> Recurrence:
        q, f, i = self.q_proj(x), self.f_proj(x), self.i_proj(x)
        if self.options.use_short_conv:
            q, f, i = (self.convolve(name, y, context) for name, y in (("q", q), ("f", f), ("i", i)))
        log_f = log_forget_gate(f, context, self.bounds if self.options.use_lower_bound else None, self.layer)
        k = -torch.expm1(log_f).to(x.dtype)
        K, V = self.heads.K, self.heads.V
        return Recurrence(split_heads(F.silu(q), K), split_heads(k, K), split_heads(i, V), split_heads(log_f, K))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        o = self.run(self.recurrence(x, context), context)
        return self.o_proj(self.g_norm(o.flatten(2)))

"""HGRN: a vector recurrence with forget gates bounded from below, higher in deeper layers (2311.04823)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.mixers.base import Dims
from plait.mixers.context import Context
from plait.mixers.linear import Heads, LinearOptions, RecurrentMixer, linear
from plait.mixers.lower_bounds import log_forget_gate
from plait.nn import GatedRMSNorm
from plait.ops import linear_scan, scan_piece


@dataclass(frozen=True)
class HGRNOptions(LinearOptions):
    """Options of HGRN.

    Args:
        expand_ratio: width of the recurrence over ``hidden_size``.
        use_lower_bound: bound the forget gates from below by the model's parameter.
        use_short_conv: convolve the input and the forget gate.
        conv_size: taps of the convolution.
    """

    method: ClassVar[str] = "hgrn"
    expand_ratio: int = 1
    use_lower_bound: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("expand_ratio")

    def heads(self, dims: Dims) -> Heads:
        """Every channel is a head of its own."""
        width = dims.hidden_size * self.expand_ratio
        return Heads(width, width, 1, 1)

    def convolved(self, dims: Dims) -> int:
        return 2 * dims.hidden_size * self.expand_ratio


class HGRN(RecurrentMixer):
    """``h_t = f_t h_{t-1} + (1 - f_t) silu(W_i x_t)`` per channel, with ``f = lb + (1 - lb) sigmoid(W_f x)``.

    The state is normed over its whole width and gated with ``silu(W_g x)``.
    """

    Options = HGRNOptions
    options: HGRNOptions
    flops_per_element = 5
    bounds: ClassVar[str] = "hgrn_lower_bounds"

    def __init__(self, dims: Dims, options: HGRNOptions, layer: int) -> None:
        super().__init__(dims, options, layer)
        d, width = dims.hidden_size, self.heads.value_width
        self.i_proj = linear(d, width)
        self.f_proj = linear(d, width)
        self.g_proj = linear(d, width)
        self.add_convolutions(False, i=width, f=width)
        self.g_norm = GatedRMSNorm(width, dims.norm_eps)
        self.o_proj = linear(width, d)

    @classmethod
    def shared_parameters(cls, dims: Dims, options: Any) -> dict[str, Tensor]:
        width = options.heads(dims).value_width
        return {cls.bounds: torch.zeros(dims.num_layers, width)} if options.use_lower_bound else {}

    def input_and_gate(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """``silu(W_i x)`` and ``log f``, ``(B, T, width)``; padding forgets nothing."""
        i, f = self.i_proj(x), self.f_proj(x)
        if self.options.use_short_conv:
            i, f = self.convolve("i", i, context), self.convolve("f", f, context)
        log_f = log_forget_gate(f, context, self.bounds if self.options.use_lower_bound else None, self.layer)
        return F.silu(i), context.zero_padding(log_f)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        i, log_f = self.input_and_gate(x, context)
        u = -torch.expm1(log_f) * i  # nothing enters at padding, where log f = 0
        if context.sequence is not None:
            h = context.sequence.continued(scan_piece(log_f, u))
        else:
            h, state = linear_scan(log_f, u, state=self.carried(context), cu_seqlens=context.cu_seqlens)
            self.carry(context, state)
        return self.o_proj(self.g_norm(h.to(x.dtype), self.g_proj(x)))

    def effective_weights(self, x: Tensor, context: Context | None = None) -> Tensor:
        """``(B, width, T, T)``: every channel is a head, its values are ``silu(W_i x)``."""
        context = replace(context or Context.plain(x), state=None)
        _, log_f = self.input_and_gate(x, context)
        # a scan over T x width channels, each fed at its own token only
        length, width = log_f.shape[1:]
        unit = torch.eye(length, dtype=log_f.dtype, device=x.device)
        u = torch.einsum("ts,btd->btsd", unit, -torch.expm1(log_f)).flatten(2)
        decay = log_f[:, :, None].expand(-1, -1, length, -1).flatten(2)
        h, _ = linear_scan(decay, u, cu_seqlens=context.cu_seqlens)
        return h.unflatten(-1, (length, width)).permute(0, 3, 1, 2).to(x.dtype)

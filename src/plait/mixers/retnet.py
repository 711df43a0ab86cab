"""RetNet: a matrix memory that fades at a fixed rate per head, with rotary positions (2307.08621)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plait.mixers.base import Dims
from plait.mixers.context import Context
from plait.mixers.linear import GroupedOptions, Heads, LinearMixer, Recurrence, linear, repeat_heads, split_heads
from plait.nn import GatedRMSNorm, RMSNorm


@dataclass(frozen=True)
class RetNetOptions(GroupedOptions):
    """Options of RetNet.

    Args:
        num_heads: heads H.
        num_kv_heads: heads of k and v, each shared by ``num_heads / num_kv_heads`` heads; None: as many.
        expand_k: width of q and k over ``hidden_size``.
        expand_v: width of v over ``hidden_size``.
        use_output_gate: gate the output.
        rope_base: base of the rotary embedding of q and k; None for no positions.
        use_short_conv: convolve q, k and v.
        conv_size: taps of the convolution.
    """

    method: ClassVar[str] = "retnet"
    num_heads: int = 8
    expand_k: float = 1.0
    expand_v: float = 2.0
    rope_base: float | None = 10000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("rope_base")

    def heads(self, dims: Dims) -> Heads:
        heads = super().heads(dims)
        self.require(
            self.rope_base is None or heads.K % 2 == 0,
            "num_heads",
            f"rotary pairs need an even head dim, not {heads.K}; change it",
        )
        return heads


class RetNet(LinearMixer):
    """``S_t = gamma_h S_{t-1} + k_t v_t^T`` with ``gamma_h = 1 - 2^(-5-h)``, read with ``q_t``.

    q and k are rotated by their positions. The read-out is normed per head and gated with ``silu(W_g x)``.
    """

    Options = RetNetOptions
    options: RetNetOptions
    flops_per_element = 5

    def __init__(self, dims: Dims, options: RetNetOptions, layer: int) -> None:
        super().__init__(dims, options, layer)
        d, heads, groups = dims.hidden_size, self.heads, options.groups
        self.q_proj = linear(d, heads.key_width)
        self.k_proj = linear(d, heads.key_width // groups)
        self.v_proj = linear(d, heads.value_width // groups)
        self.add_convolutions(True, q=heads.key_width, k=heads.key_width // groups, v=heads.value_width // groups)
        if options.use_output_gate:
            self.g_proj = linear(d, heads.value_width)
            self.g_norm_swish_gate = GatedRMSNorm(heads.V, dims.norm_eps)
        else:
            self.g_norm = RMSNorm(heads.V, dims.norm_eps)
        self.o_proj = linear(heads.value_width, d)

    def log_decay(self, x: Tensor) -> Tensor:
        """``log(1 - 2^(-5-h))`` for each head, ``(H,)``, fp32 at least."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        h = torch.arange(self.heads.values, device=x.device, dtype=dtype)
        return torch.log1p(-torch.exp2(-5 - h))

    def recurrence(self, x: Tensor, context: Context) -> Recurrence:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.options.use_short_conv:
            q, k, v = (self.convolve(name, y, context) for name, y in (("q", q), ("k", k), ("v", v)))
        q, k, v = (split_heads(y, size) for y, size in ((q, self.heads.K), (k, self.heads.K), (v, self.heads.V)))
        if self.options.rope_base is not None:
            q, k = context.rotate(q, self.options.rope_base), context.rotate(k, self.options.rope_base)
        groups = self.options.groups
        return Recurrence(q, repeat_heads(k, groups), repeat_heads(v, groups), self.log_decay(x))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        o = self.run(self.recurrence(x, context), context)
        if self.options.use_output_gate:
            o = self.g_norm_swish_gate(o, split_heads(self.g_proj(x), self.heads.V))
        else:
            o = self.g_norm(o)
        return self.o_proj(o.flatten(2))

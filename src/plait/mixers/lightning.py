"""Lightning attention: a memory that fades at fixed rates, as in MiniCPM-SALA (2602.11761) and HALO (2601.22156)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plait.mixers.base import Dims
from plait.mixers.context import Context
from plait.mixers.linear import Heads, LinearMixer, LinearOptions, Recurrence, default_heads, linear, split_heads
from plait.nn import GatedRMSNorm, RMSNorm


@dataclass(frozen=True)
class LightningOptions(LinearOptions):
    """Options of Lightning attention.

    Args:
        num_heads: heads H of q, k and v. None: ``hidden_size // head_dim``, or, if that is None too, the fewest heads
            (two at least) that divide ``hidden_size`` into heads of at most 128 channels.
        head_dim: channels D of a head. None: ``hidden_size // num_heads``.
        rope_base: base of the rotary embedding of q and k; None for no positions.
        qk_norm: RMS norm on every query and key head, before the rotary embedding.
        qk_norm_eps: epsilon of that norm; None: the model's.
        use_output_gate: multiply the normed result with ``sigmoid(W_z x)``.
        use_short_conv: convolve q, k and v; not part of the published layer.
        conv_size: taps of the convolution.
    """

    method: ClassVar[str] = "lightning"
    num_heads: int | None = None
    head_dim: int | None = None
    rope_base: float | None = 10000.0
    qk_norm: bool = True
    qk_norm_eps: float | None = None
    use_output_gate: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("num_heads", "head_dim", "rope_base", "qk_norm_eps")

    def heads(self, dims: Dims) -> Heads:
        size, H, D = dims.hidden_size, self.num_heads, self.head_dim
        if H is None and D is not None:
            self.require(size % D == 0, "head_dim", f"does not divide hidden_size {size}; set num_heads as well")
            H = size // D
        H = H or default_heads(size, 128)
        if D is None:
            self.require(size % H == 0, "num_heads", f"does not divide hidden_size {size}; set head_dim as well")
            D = size // H
        rotates = self.rope_base is not None
        self.require(not rotates or D % 2 == 0, "head_dim", f"rotary pairs need an even head dim, not {D}; change it")
        return Heads(H, H, D, D)


class Lightning(LinearMixer):
    """``S_t = e^(-s_h) S_{t-1} + k_t v_t^T``, read with ``q_t / sqrt(D)`` (2602.11761, section on Lightning attention).

    q and k are normed per head and rotated by their positions. There is neither a feature map nor a denominator;
    the slopes ``s_h`` of :func:`slopes` are fixed. The heads are normed together and gated with ``sigmoid(W_z x)``.
    """

    Options = LightningOptions
    options: LightningOptions
    flops_per_element = 5

    def __init__(self, dims: Dims, options: LightningOptions, layer: int) -> None:
        super().__init__(dims, options, layer)
        d, width = dims.hidden_size, self.heads.key_width
        self.q_proj = linear(d, width)
        self.k_proj = linear(d, width)
        self.v_proj = linear(d, width)
        self.add_convolutions(True, q=width, k=width, v=width)
        if options.qk_norm:
            eps = options.qk_norm_eps or dims.norm_eps
            self.q_norm = RMSNorm(self.heads.K, eps)
            self.k_norm = RMSNorm(self.heads.K, eps)
        if options.use_output_gate:
            self.z_proj = linear(d, width)
            self.o_norm: RMSNorm = GatedRMSNorm(width, dims.norm_eps, "sigmoid")
        else:
            self.o_norm = RMSNorm(width, dims.norm_eps)
        self.o_proj = linear(width, d)

    def log_decay(self, x: Tensor) -> Tensor:
        """``-s_h`` for each head, ``(H,)``, fp32 at least."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        return -torch.tensor(slopes(self.heads.values), dtype=dtype, device=x.device)

    def recurrence(self, x: Tensor, context: Context) -> Recurrence:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.options.use_short_conv:
            q, k, v = (self.convolve(name, y, context) for name, y in (("q", q), ("k", k), ("v", v)))
        q, k, v = (split_heads(y, self.heads.K) for y in (q, k, v))
        if self.options.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.options.rope_base is not None:
            q, k = context.rotate(q, self.options.rope_base), context.rotate(k, self.options.rope_base)
        return Recurrence(q, k, v, self.log_decay(x))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        o = self.run(self.recurrence(x, context), context).flatten(2)
        o = self.o_norm(o, self.z_proj(x)) if self.options.use_output_gate else self.o_norm(o)
        return self.o_proj(o)


def slopes(heads: int) -> list[float]:
    """Decay rates of ALiBi's rule (2108.12409, section 3), each above 0 and below 1.

    ``2^(-8 (h + 1) / H)`` for a power of two H; else those of the next lower power of two, followed by every second
    one of twice that power.
    """
    lower = 2 ** int(math.log2(heads))
    exact = [2 ** (-8 * (h + 1) / lower) for h in range(lower)]
    between = [2 ** (-8 * (h + 1) / (2 * lower)) for h in range(0, 2 * lower, 2)]
    return exact + between[: heads - lower]

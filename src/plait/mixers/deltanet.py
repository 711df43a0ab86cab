"""DeltaNet: a matrix memory corrected by the delta rule, one key at a time (2406.06484)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.mixers.base import Dims
from plait.mixers.context import Context
from plait.mixers.linear import Heads, LinearMixer, LinearOptions, Recurrence, default_heads, linear, split_heads
from plait.nn import GatedRMSNorm, RMSNorm, l2_norm, widen


@dataclass(frozen=True)
class DeltaNetOptions(LinearOptions):
    """Options of DeltaNet.

    Args:
        num_heads: heads H. None: the fewest (two at least) that divide ``hidden_size`` into heads of at most
            128 channels.
        expand_k: width of q and k over ``hidden_size``.
        expand_v: width of v over ``hidden_size``.
        use_beta: learn the writing strength; otherwise it is 1.
        use_gate: gate the output.
        use_short_conv: convolve q, k and v.
        conv_size: taps of the convolution.
        qk_norm: ``l2`` (unit length); ``signed_sum`` (entries add up to 1) or ``abs_sum`` (their sizes do), which are
            the same where ``qk_activation`` leaves nothing below 0. flash-linear-attention calls both ``sum``: the
            first before its version 0.6, the second since.
        qk_activation: map of q and k before the norm; ``elu`` is ``elu + 1``.
        allow_neg_eigval: writing strength in (0, 2) in place of (0, 1), so that a write can flip a component.
    """

    method: ClassVar[str] = "deltanet"
    use_short_conv: bool = True
    num_heads: int | None = None
    expand_k: float = 1.0
    expand_v: float = 1.0
    use_beta: bool = True
    use_gate: bool = False
    qk_norm: Literal["l2", "signed_sum", "abs_sum"] = "l2"
    qk_activation: Literal["silu", "relu", "elu", "identity"] = "silu"
    allow_neg_eigval: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("num_heads", "expand_k", "expand_v")
        self.require(self.qk_norm in NORMS, "qk_norm", f"choose one of {', '.join(NORMS)}")
        self.require(self.qk_activation in ACTIVATIONS, "qk_activation", f"choose one of {', '.join(ACTIVATIONS)}")

    def heads(self, dims: Dims) -> Heads:
        H = self.num_heads or default_heads(dims.hidden_size, 128)
        return Heads(H, H, self.expanded("expand_k", dims, H), self.expanded("expand_v", dims, H))


def signed_sum_norm(x: Tensor) -> Tensor:
    """``x / sum(x)`` over the last axis; zero maps to zero."""
    wide = widen(x)
    total = wide.sum(-1, keepdim=True)
    return (wide / torch.where(total == 0, 1, total)).to(x.dtype)


def abs_sum_norm(x: Tensor) -> Tensor:
    """``x / max(sum |x|, 1e-6)`` over the last axis."""
    return F.normalize(widen(x), p=1.0, dim=-1, eps=1e-6).to(x.dtype)


NORMS = {"l2": l2_norm, "signed_sum": signed_sum_norm, "abs_sum": abs_sum_norm}

ACTIVATIONS = {
    "silu": F.silu,
    "relu": F.relu,
    "elu": lambda x: F.elu(x) + 1,
    "identity": lambda x: x,
}


class DeltaNet(LinearMixer):
    """``S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T``, read with ``q_t``.

    q and k pass a short convolution, silu and a scaling to unit length; v passes convolution and silu;
    ``beta = sigmoid(W_b x)`` per head. The read-out is normed per head.
    """

    Options = DeltaNetOptions
    options: DeltaNetOptions
    flops_per_element = 8

    def __init__(self, dims: Dims, options: DeltaNetOptions, layer: int) -> None:
        super().__init__(dims, options, layer)
        d, heads = dims.hidden_size, self.heads
        self.q_proj = linear(d, heads.key_width)
        self.k_proj = linear(d, heads.key_width)
        self.v_proj = linear(d, heads.value_width)
        if options.use_beta:
            self.b_proj = linear(d, heads.values)
        self.add_convolutions(False, q=heads.key_width, k=heads.key_width, v=heads.value_width)
        if options.use_gate:
            self.g_proj = linear(d, heads.value_width)
            self.o_norm: nn.Module = GatedRMSNorm(heads.V, dims.norm_eps)
        else:
            self.o_norm = RMSNorm(heads.V, dims.norm_eps)
        self.o_proj = linear(heads.value_width, d)

    def recurrence(self, x: Tensor, context: Context) -> Recurrence:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.options.use_short_conv:
            q, k, v = (self.convolve(name, y, context) for name, y in (("q", q), ("k", k), ("v", v)))
        activation = ACTIVATIONS[self.options.qk_activation]
        normalise = NORMS[self.options.qk_norm]
        q, k = (normalise(activation(split_heads(y, self.heads.K))) for y in (q, k))
        v = split_heads(F.silu(v), self.heads.V)
        beta = torch.sigmoid(widen(self.b_proj(x))) if self.options.use_beta else torch.ones_like(widen(v[..., 0]))
        if self.options.allow_neg_eigval:
            beta = 2 * beta
        return Recurrence(q, k, v, beta=beta)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        o = self.run(self.recurrence(x, context), context)
        gate = split_heads(self.g_proj(x), self.heads.V) if self.options.use_gate else None
        o = self.o_norm(o) if gate is None else self.o_norm(o, gate)
        return self.o_proj(o.flatten(2))

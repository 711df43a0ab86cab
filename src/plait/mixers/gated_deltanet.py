"""Gated DeltaNet: a matrix memory that fades as a whole and is corrected key by key (2412.06464)."""

from __future__ import annotations

import math
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
class GroupedValueOptions(LinearOptions):
    """Options of Gated DeltaNet and KDA, whose queries and keys may have fewer heads than the values.

    Args:
        num_heads: query and key heads H. None: ``hidden_size // head_dim``, or, if that is None too, the fewest
            heads (two at least) that divide ``hidden_size`` into heads of at most :attr:`widest` channels.
        head_dim: key channels K of a head. None: ``hidden_size // num_heads``.
        num_v_heads: value heads, a multiple of ``num_heads``; None: as many.
        expand_v: value channels of a head over its key channels.
        use_short_conv: convolve q, k and v.
        conv_size: taps of the convolution.
        allow_neg_eigval: writing strength in (0, 2) in place of (0, 1), so that a write can flip a component.
    """

    #: Most key channels of a head where the options leave it open.
    widest: ClassVar[int]
    use_short_conv: bool = True
    num_heads: int | None = None
    head_dim: int | None = None
    num_v_heads: int | None = None
    expand_v: float = 1.0
    allow_neg_eigval: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("num_heads", "head_dim", "num_v_heads", "expand_v")

    def heads(self, dims: Dims) -> Heads:
        size, H, K = dims.hidden_size, self.num_heads, self.head_dim
        if H is None and K is not None:
            self.require(size % K == 0, "head_dim", f"does not divide hidden_size {size}; set num_heads as well")
            H = size // K
        H = H or default_heads(size, self.widest)
        if K is None:
            self.require(size % H == 0, "num_heads", f"does not divide hidden_size {size}; set head_dim as well")
            K = size // H
        HV = self.num_v_heads or H
        self.require(HV % H == 0, "num_v_heads", f"must be a multiple of num_heads {H}")
        V = round(K * self.expand_v)
        whole = V > 0 and math.isclose(V, K * self.expand_v)  # a quotient such as 1/49 times 49 is not quite 1
        self.require(whole, "expand_v", f"times head_dim {K} is not a whole number of channels")
        return Heads(H, HV, K, V)


@dataclass(frozen=True)
class GatedDeltaNetOptions(GroupedValueOptions):
    """Options of Gated DeltaNet.

    Args:
        num_heads: query and key heads H. None: ``hidden_size // head_dim``, or, if that is None too, the fewest
            heads (two at least) that divide ``hidden_size`` into heads of at most 256 channels.
        head_dim: key channels K of a head. None: ``hidden_size // num_heads``.
        num_v_heads: value heads, a multiple of ``num_heads``; None: as many.
        expand_v: value channels of a head over its key channels.
        use_gate: gate the output.
        output_gate_activation: of that gate, ``silu`` as published, or ``sigmoid``.
        use_short_conv: convolve q, k and v.
        conv_size: taps of the convolution.
        allow_neg_eigval: writing strength in (0, 2) in place of (0, 1), so that a write can flip a component.
        norm_eps: epsilon of the norm of the read-out; None: the model's.
    """

    method: ClassVar[str] = "gated_deltanet"
    widest: ClassVar[int] = 256
    use_gate: bool = True
    output_gate_activation: Literal["silu", "sigmoid"] = "silu"
    norm_eps: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("norm_eps")
        known = self.output_gate_activation in ("silu", "sigmoid")
        self.require(known, "output_gate_activation", "choose 'silu' or 'sigmoid'")


class GatedDeltaNet(LinearMixer):
    """``S_t = a_t S_{t-1} + beta_t k_t (v_t - a_t S_{t-1}^T k_t)^T``, read with ``q_t``.

    q, k and v pass a short convolution and silu, q and k are then scaled to unit length; ``beta = sigmoid(W_b x)``
    and ``log a = -exp(A_log) softplus(W_a x + dt_bias)``, one each per value head. The read-out is normed per
    head and gated with ``silu(W_g x)``.
    """

    Options = GatedDeltaNetOptions
    options: GatedDeltaNetOptions
    flops_per_element = 8

    def __init__(self, dims: Dims, options: GatedDeltaNetOptions, layer: int) -> None:
        super().__init__(dims, options, layer)
        d, heads = dims.hidden_size, self.heads
        self.q_proj = linear(d, heads.key_width)
        self.k_proj = linear(d, heads.key_width)
        self.v_proj = linear(d, heads.value_width)
        self.a_proj = linear(d, heads.values)
        self.b_proj = linear(d, heads.values)
        self.A_log = nn.Parameter(torch.zeros(heads.values))
        self.dt_bias = nn.Parameter(torch.zeros(heads.values))
        self.add_convolutions(True, q=heads.key_width, k=heads.key_width, v=heads.value_width)
        eps = options.norm_eps or dims.norm_eps
        if options.use_gate:
            self.g_proj = linear(d, heads.value_width)
            self.o_norm: nn.Module = GatedRMSNorm(heads.V, eps, options.output_gate_activation)
        else:
            self.o_norm = RMSNorm(heads.V, eps)
        self.o_proj = linear(heads.value_width, d)
        self.init_parameters(0.02)

    @torch.no_grad()
    def init_parameters(self, std: float) -> None:
        """``A ~ U(0, 16)``; a time step log-uniform in [0.001, 0.1], stored as the inverse of softplus."""
        self.A_log.uniform_(0, 16).clamp_(min=1e-4).log_()
        init_time_step(self.dt_bias)

    def recurrence(self, x: Tensor, context: Context) -> Recurrence:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.options.use_short_conv:
            q, k, v = (self.convolve(name, y, context) for name, y in (("q", q), ("k", k), ("v", v)))
        else:
            q, k, v = F.silu(q), F.silu(k), F.silu(v)
        beta = torch.sigmoid(widen(self.b_proj(x)))
        if self.options.allow_neg_eigval:
            beta = 2 * beta
        log_decay = -widen(self.A_log).exp() * F.softplus(widen(self.a_proj(x)) + widen(self.dt_bias))
        K, V = self.heads.K, self.heads.V
        return Recurrence(l2_norm(split_heads(q, K)), l2_norm(split_heads(k, K)), split_heads(v, V), log_decay, beta)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        o = self.run(self.recurrence(x, context), context)
        gate = split_heads(self.g_proj(x), self.heads.V) if self.options.use_gate else None
        o = self.o_norm(o) if gate is None else self.o_norm(o, gate)
        return self.o_proj(o.flatten(2))


def init_time_step(bias: Tensor) -> None:
    """Fill ``bias`` so that ``softplus(bias)`` is log-uniform in [0.001, 0.1]."""
    step = bias.uniform_(math.log(0.001), math.log(0.1)).exp_().clamp_(min=1e-4)
    bias.copy_(step + torch.log(-torch.expm1(-step)))

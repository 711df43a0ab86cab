"""Kimi Delta Attention: Gated DeltaNet with a decay of its own for every key channel (2510.26692, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.mixers.base import Dims
from plait.mixers.context import Context
from plait.mixers.gated_deltanet import GroupedValueOptions, init_time_step
from plait.mixers.linear import LinearMixer, Recurrence, linear, split_heads
from plait.nn import GatedRMSNorm, l2_norm, widen


@dataclass(frozen=True)
class KDAOptions(GroupedValueOptions):
    """Options of Kimi Delta Attention.

    Args:
        num_heads: query and key heads H. None: ``hidden_size // head_dim``, or, if that is None too, the fewest
            heads (two at least) that divide ``hidden_size`` into heads of at most 128 channels.
        head_dim: key channels K of a head. None: ``hidden_size // num_heads``.
        num_v_heads: value heads, a multiple of ``num_heads``; None: as many. Each has its own decay and strength.
        expand_v: value channels V of a head over its key channels.
        use_short_conv: convolve q, k and v.
        conv_size: taps of the convolution.
        allow_neg_eigval: writing strength in (0, 2) in place of (0, 1), so that a write can flip a component.
        lower_bound: a log decay between this number and 0, ``lower_bound * sigmoid(exp(A_log) (f + dt_bias))``;
            None: ``-exp(A_log) softplus(f + dt_bias)``, without a bound, as published.
        output_gate_bias: a bias on the output gate; flash-linear-attention has one, the Kimi Linear models do not.
    """

    method: ClassVar[str] = "kda"
    widest: ClassVar[int] = 128
    lower_bound: float | None = None
    output_gate_bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        below = self.lower_bound is None or self.lower_bound < 0
        self.require(below, "lower_bound", "bounds a log decay: a number below 0, such as -5")


class KDA(LinearMixer):
    """``S~ = diag(e^{g_t}) S_{t-1}``, ``S_t = S~ + beta_t k_t (v_t - S~^T k_t)^T``, read with ``q_t``.

    q, k and v pass a short convolution and silu, q and k are then scaled to unit length; ``beta = sigmoid(W_b x)``
    per value head, and ``g = -exp(A_log) softplus(W_2 W_1 x + dt_bias)`` per key channel, through a bottleneck as wide
    as a head. The read-out is normed per head and gated with ``sigmoid(W_4 W_3 x + b)``.
    """

    Options = KDAOptions
    options: KDAOptions
    flops_per_element = 8

    def __init__(self, dims: Dims, options: KDAOptions, layer: int) -> None:
        super().__init__(dims, options, layer)
        d, heads = dims.hidden_size, self.heads
        self.q_proj = linear(d, heads.key_width)
        self.k_proj = linear(d, heads.key_width)
        self.v_proj = linear(d, heads.value_width)
        self.f_proj = nn.Sequential(linear(d, heads.V), linear(heads.V, heads.values * heads.K))
        self.b_proj = linear(d, heads.values)
        self.A_log = nn.Parameter(torch.zeros(heads.values))
        self.dt_bias = nn.Parameter(torch.zeros(heads.values * heads.K))
        self.add_convolutions(True, q=heads.key_width, k=heads.key_width, v=heads.value_width)
        self.g_proj = nn.Sequential(
            linear(d, heads.V), nn.Linear(heads.V, heads.value_width, bias=options.output_gate_bias)
        )
        self.o_norm = GatedRMSNorm(heads.V, dims.norm_eps, activation="sigmoid")
        self.o_proj = linear(heads.value_width, d)
        self.init_parameters(0.02)

    @torch.no_grad()
    def init_parameters(self, std: float) -> None:
        """``A ~ U(1, 16)``, or 1 where the decay has a bound; the time step as in Gated DeltaNet."""
        if self.options.lower_bound is None:
            self.A_log.uniform_(1, 16).log_()
        else:
            self.A_log.zero_()
        init_time_step(self.dt_bias)

    def log_decay(self, x: Tensor) -> Tensor:
        """``g`` ``(B, T, HV, K)`` for ``x`` ``(B, T, d)``, at most 0."""
        rate = widen(self.A_log).exp()[:, None]
        step = split_heads(widen(self.f_proj(x)) + widen(self.dt_bias), self.heads.K)
        if self.options.lower_bound is not None:
            return self.options.lower_bound * torch.sigmoid(rate * step)
        return -rate * F.softplus(step)

    def recurrence(self, x: Tensor, context: Context) -> Recurrence:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.options.use_short_conv:
            q, k, v = (self.convolve(name, y, context) for name, y in (("q", q), ("k", k), ("v", v)))
        else:
            q, k, v = F.silu(q), F.silu(k), F.silu(v)
        beta = torch.sigmoid(widen(self.b_proj(x)))
        if self.options.allow_neg_eigval:
            beta = 2 * beta
        K, V = self.heads.K, self.heads.V
        q, k = l2_norm(split_heads(q, K)), l2_norm(split_heads(k, K))
        return Recurrence(q, k, split_heads(v, V), self.log_decay(x), beta)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        o = self.run(self.recurrence(x, context), context)
        return self.o_proj(self.o_norm(o, split_heads(self.g_proj(x), self.heads.V)).flatten(2))

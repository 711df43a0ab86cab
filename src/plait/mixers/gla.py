"""Gated linear attention: a matrix memory whose key channels fade at learned rates (2312.06635)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from plait.mixers.base import Dims
from plait.mixers.context import Context
from plait.mixers.linear import GroupedOptions, LinearMixer, Recurrence, linear, repeat_heads, split_heads
from plait.nn import GatedRMSNorm, RMSNorm, widen


@dataclass(frozen=True)
class GLAOptions(GroupedOptions):
    """Options of gated linear attention.

    Args:
        num_heads: heads H.
        num_kv_heads: heads of k, v and the decay, each shared by ``num_heads / num_kv_heads`` heads; None: as many.
        expand_k: width of q and k over ``hidden_size``.
        expand_v: width of v over ``hidden_size``.
        gate_low_rank_dim: inner width of the decay's projection.
        gate_logit_normalizer: divisor of the log decay; 16 keeps memories long at first.
        clamp_min: lower bound of the log decay, or None.
        use_output_gate: gate the output.
        use_short_conv: convolve q, k and v.
        conv_size: taps of the convolution.
    """

    method: ClassVar[str] = "gla"
    num_heads: int = 4
    expand_k: float = 0.5
    expand_v: float = 1.0
    gate_low_rank_dim: int = 16
    gate_logit_normalizer: float = 16
    clamp_min: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("gate_low_rank_dim", "gate_logit_normalizer")
        self.require(self.clamp_min is None or self.clamp_min <= 0, "clamp_min", "bounds a log decay: 0 or below")


class GLA(LinearMixer):
    """``S_t = diag(e^{g_t}) S_{t-1} + k_t v_t^T``, read with ``q_t``.

    ``g = logsigmoid(W_2 W_1 x + b) / 16`` per key channel, through a bottleneck of 16. The read-out is normed per
    head and gated with ``silu(W_g x)``.
    """

    Options = GLAOptions
    options: GLAOptions
    flops_per_element = 7

    def __init__(self, dims: Dims, options: GLAOptions, layer: int) -> None:
        super().__init__(dims, options, layer)
        d, heads, groups = dims.hidden_size, self.heads, options.groups
        self.q_proj = linear(d, heads.key_width)
        self.k_proj = linear(d, heads.key_width // groups)
        self.v_proj = linear(d, heads.value_width // groups)
        self.gk_proj = nn.Sequential(
            linear(d, options.gate_low_rank_dim),
            nn.Linear(options.gate_low_rank_dim, heads.key_width // groups),
        )
        self.add_convolutions(True, q=heads.key_width, k=heads.key_width // groups, v=heads.value_width // groups)
        if options.use_output_gate:
            self.g_proj = linear(d, heads.value_width)
            self.g_norm_swish_gate = GatedRMSNorm(heads.V, dims.norm_eps)
        else:
            self.g_norm = RMSNorm(heads.V, dims.norm_eps)
        self.o_proj = linear(heads.value_width, d)

    def recurrence(self, x: Tensor, context: Context) -> Recurrence:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.options.use_short_conv:
            q, k, v = (self.convolve(name, y, context) for name, y in (("q", q), ("k", k), ("v", v)))
        log_decay = F.logsigmoid(widen(self.gk_proj(x))) / self.options.gate_logit_normalizer
        if self.options.clamp_min is not None:
            log_decay = log_decay.clamp(min=self.options.clamp_min)
        K, V, groups = self.heads.K, self.heads.V, self.options.groups
        k, v, log_decay = (repeat_heads(split_heads(y, size), groups) for y, size in ((k, K), (v, V), (log_decay, K)))
        return Recurrence(split_heads(q, K), k, v, log_decay)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        o = self.run(self.recurrence(x, context), context)
        if self.options.use_output_gate:
            o = self.g_norm_swish_gate(o, split_heads(self.g_proj(x), self.heads.V))
        else:
            o = self.g_norm(o)
        return self.o_proj(o.flatten(2))

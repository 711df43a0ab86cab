"""Lizard: gated linear attention beside a short softmax window with sinks, both without positions (2507.09025)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.errors import CacheError
from plait.mixers.attention import count_pairs, lengths_of
from plait.mixers.base import Cost, Dims, Mixer
from plait.mixers.context import Context
from plait.mixers.linear import default_heads, linear, repeat_heads, split_heads
from plait.mixers.softmax_mixer import Rotation, Scoring
from plait.mixers.state import LayerState, States, Tokens
from plait.nn import RMSNorm, widen
from plait.ops import attention_piece, linear_attention
from plait.ops.softmax import attention_output
from plait.ops.visibility import Visibility, Window
from plait.options import Options

#: Below it a denominator counts as empty; the features of a query and of all keys then have nothing in common.
SMALLEST = 1e-12


@dataclass(frozen=True)
class LizardOptions(Options):
    """Options of Lizard.

    Args:
        num_heads: query heads H. None: ``hidden_size // head_dim``, or, if that is None too, the fewest heads (two at
            least) that divide ``hidden_size`` into heads of at most 128 channels.
        num_kv_heads: key and value heads N, a divisor of ``num_heads``; None: as many.
        head_dim: channels D of a head. None: ``hidden_size // num_heads``.
        feature_dim: features F of a query or key, both halves together; even.
        activation: of the feature maps: ``softmax`` over each half, or ``exp``, which the paper's section on efficiency
            has and which overflows where a softmax does not.
        share_features: one feature map for all heads of the layer instead of one each. The paper does not say which.
        gate_bias: constant in the gate's sigmoid; 0 as published, which starts at a gate of 1/2 and a memory of a token
            and a half, 6 starts at 0.9975.
        window: tokens w that the softmax branch sees, the query's own included; 0 leaves that branch out.
        sinks: learnt terms m in its denominator.
        qk_norm: RMS norm on every query and key head, for models that have one.
        qk_norm_eps: epsilon of that norm; None: the model's.
    """

    method: ClassVar[str] = "lizard"
    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    feature_dim: int = 128
    activation: Literal["softmax", "exp"] = "softmax"
    share_features: bool = False
    gate_bias: float = 0.0
    window: int = 128
    sinks: int = 4
    qk_norm: bool = False
    qk_norm_eps: float | None = None

    def __post_init__(self) -> None:
        self.require_positive("num_heads", "num_kv_heads", "head_dim", "feature_dim", "qk_norm_eps")
        self.require(self.feature_dim % 2 == 0, "feature_dim", "has two halves and must be even")
        self.require(self.window >= 0, "window", "must be 0 or more")
        self.require(self.sinks >= 0, "sinks", "must be 0 or more")

    @classmethod
    def small(cls, dims: Any = None) -> Self:
        return cls(window=8, feature_dim=8)

    def heads(self, dims: Dims) -> tuple[int, int, int]:
        """Query heads H, key-value heads N and head dim D in a model of these ``dims``.

        Raises:
            OptionError: the options do not fit ``hidden_size``.
        """
        size, H, D = dims.hidden_size, self.num_heads, self.head_dim
        if H is None and D is not None:
            self.require(size % D == 0, "head_dim", f"does not divide hidden_size {size}; set num_heads as well")
            H = size // D
        H = H or default_heads(size, 128)
        if D is None:
            self.require(size % H == 0, "num_heads", f"does not divide hidden_size {size}; set head_dim as well")
            D = size // H
        N = self.num_kv_heads or H
        self.require(H % N == 0, "num_kv_heads", f"must divide num_heads {H}")
        return H, N, D


class Lizard(Mixer):
    """``y = y_gate + alpha y_anchor``, then ``W_o`` (2507.09025, section 3).

    ``y_gate = (phi_q^T S) / (phi_q^T z)`` with ``S_t = g_t S_{t-1} + phi_k v_t^T``, ``z_t = g_t z_{t-1} + phi_k`` and
    one gate ``g_t = sigmoid(W_g x_t)`` for the whole layer. ``y_anchor`` is softmax attention over the last w tokens
    with m terms ``e^{t_j}`` that stand in its denominator only. Neither branch knows positions.

    Feature maps start as an identity, cut off or repeated where F/2 is not D; ``W_g`` starts at 0, ``alpha`` at 1 and
    ``t`` at 0: all reconstruction, since the paper does not say how they start. It writes ``t_j`` for the terms
    themselves; as ``e^{t_j}`` they stay positive.
    """

    Options = LizardOptions
    options: LizardOptions

    def __init__(self, dims: Dims, options: LizardOptions, layer: int) -> None:
        super().__init__(dims, options, layer)
        d = dims.hidden_size
        H, N, D = self.sizes = options.heads(dims)
        self.q_proj = linear(d, H * D)
        self.k_proj = linear(d, N * D)
        self.v_proj = linear(d, N * D)
        self.o_proj = linear(H * D, d)
        if options.qk_norm:
            eps = options.qk_norm_eps or dims.norm_eps
            self.q_norm = RMSNorm(D, eps)
            self.k_norm = RMSNorm(D, eps)
        maps = 1 if options.share_features else H
        self.q_map = nn.Parameter(torch.zeros(maps, D, options.feature_dim // 2))
        self.k_map = nn.Parameter(torch.zeros(maps, D, options.feature_dim // 2))
        self.gate = nn.Parameter(torch.zeros(d))
        if options.window:
            self.alpha = nn.Parameter(torch.ones(1))
            if options.sinks:
                self.sink_logits = nn.Parameter(torch.zeros(options.sinks))
        self.init_parameters(0.02)

    @torch.no_grad()
    def init_parameters(self, std: float) -> None:
        """As the class says."""
        _, size, half = self.q_map.shape
        columns = torch.arange(half, device=self.q_map.device)
        for feature_map in (self.q_map, self.k_map):
            feature_map.zero_()[:, columns % size, columns] = 1
        self.gate.zero_()
        if self.options.window:
            self.alpha.fill_(1)
            if self.options.sinks:
                self.sink_logits.zero_()

    keys_in = "kv"

    def head_sizes(self) -> tuple[int, int, int, int]:
        """See :class:`~plait.mixers.softmax_mixer.SoftmaxMixer`, as of the methods below: of the softmax branch."""
        heads, kv_heads, size = self.sizes
        return heads, kv_heads, size, size

    def scoring(self) -> Scoring:
        sinks = self.sink_logits.logsumexp(0).expand(self.sizes[0]) if self.options.sinks else None
        return Scoring(self.sizes[2] ** -0.5, sink_logits=sinks)

    def visibility(self) -> Visibility | None:
        return Window(self.options.window) if self.options.window else None

    def rotation(self) -> Rotation | None:
        return None

    def finish(self, o: Tensor, x: Tensor, parts: tuple[Tensor, Tensor, Tensor], context: Context) -> Tensor:
        y = self._gated(*parts, self.log_gate(x), context) + self.alpha * o
        return self.o_proj(y.to(parts[2].dtype).flatten(2))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        q, k, v = parts = self.queries_keys_values(x, context)
        if self.options.window:
            return self.finish(self._anchored(q, k, v, context), x, parts, context)
        y = self._gated(q, k, v, self.log_gate(x), context)
        return self.o_proj(y.to(v.dtype).flatten(2))

    def queries_keys_values(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``(B, T, H, D)``, keys and values ``(B, T, N, D)``, normed where the options say so."""
        q, k, v = (split_heads(y, self.sizes[2]) for y in (self.q_proj(x), self.k_proj(x), self.v_proj(x)))
        return (self.q_norm(q), self.k_norm(k), v) if self.options.qk_norm else (q, k, v)

    def log_gate(self, x: Tensor) -> Tensor:
        """``log g`` ``(B, T)``, fp32 at least."""
        return F.logsigmoid(widen(x) @ widen(self.gate) + self.options.gate_bias)

    def _gated(self, q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, context: Context) -> Tensor:
        """The linear branch ``(B, T, H, V)``; the last value channel is 1, so that S holds z as well."""
        groups = q.shape[2] // k.shape[2]
        q_features = features(q, self.q_map, self.options.activation)
        k_features = features(repeat_heads(k, groups), self.k_map, self.options.activation)
        values = F.pad(repeat_heads(widen(v), groups), (0, 1), value=1.0)
        log_decay = context.zero_padding(log_gate[..., None].expand(*v.shape[:2], q.shape[2]))
        segment = None if context.state is None else context.state["recurrent"]
        if context.sequence is not None:
            piece = attention_piece(q_features, k_features, values, log_decay, scale=1.0)
            o = context.sequence.continued(piece)
        else:
            o, state = linear_attention(
                q_features,
                context.zero_padding(k_features),
                values,
                log_decay,
                scale=1.0,
                state=None if segment is None else segment.value,  # type: ignore[attr-defined]
                cu_seqlens=context.cu_seqlens,
                overwrite_state=context.overwrite_state,
            )
        if segment is not None:
            segment.value = state  # type: ignore[attr-defined]
        return o[..., :-1] / o[..., -1:].clamp(min=SMALLEST)

    def _anchored(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """The softmax branch ``(B, T, H, D)``."""
        start = context.padding
        if context.state is not None:
            if context.cu_seqlens is not None:
                raise CacheError(
                    f"Layer {self.layer}: packed documents cannot be cached by the window of Lizard; "
                    "run them without a cache, or as rows of a padded batch."
                )
            (k, v), start = context.state["kv"].append(k, v, padding=context.padding)  # type: ignore[attr-defined]
        if context.sequence is not None:
            both = torch.stack([k, v], 2)
            k, v = torch.cat([context.sequence.before(both, self.options.window - 1), both], 1).unbind(2)
        seen = Window(self.options.window)
        if context.pairs is not None:
            count_pairs(context, self.layer, q, k.shape[1], start, seen)
        sinks = self.sink_logits.expand(self.sizes[0], -1) if self.options.sinks else None
        q, k, v = map(widen, (q, k, v))
        lengths = lengths_of(k, start)
        return attention_output(q, k, v, seen, sink_logits=sinks, lengths=lengths, cu_seqlens=context.cu_seqlens)

    def new_state(self) -> LayerState:
        window = {"kv": Tokens("keys", "values", window=self.options.window)} if self.options.window else {}
        return LayerState({"recurrent": States(), **window})

    @classmethod
    def cost(cls, dims: Dims, T: int, options: LizardOptions, *, cache_dtype: torch.dtype = torch.bfloat16) -> Cost:
        """See :meth:`Mixer.cost`. The linear branch costs ``5 H F (D + 1)`` a token and holds ``4 H F (D + 1)`` bytes;
        the window costs ``2 w (2T - w) H D`` and holds the last ``w - 1`` keys and values.
        """
        H, N, D = options.heads(dims)
        elements = H * options.feature_dim * (D + 1)
        seen, stored = min(T, options.window), min(T, max(options.window - 1, 0))
        return Cost(
            flops_prefill=5 * elements * T + 2 * seen * (2 * T - seen) * H * D,
            flops_decode=5 * elements + 4 * min(T + 1, options.window) * H * D,
            state_bytes=4 * elements + 2 * stored * N * D * cache_dtype.itemsize,
        )

    def effective_weights(self, x: Tensor, context: Context | None = None) -> Tensor:
        context = replace(context or Context.plain(x), state=None)
        q, k, _ = self.queries_keys_values(x, context)
        # with the value of token j a unit vector along j, the outputs are the rows of the matrix
        length = x.shape[1]
        unit = torch.eye(length, dtype=x.dtype, device=x.device)[None, :, None].expand(x.shape[0], -1, k.shape[2], -1)
        y = self._gated(q, k, unit, self.log_gate(x), context)
        if self.options.window:
            y = y + self.alpha * self._anchored(q, k, unit, context)
        return y.transpose(1, 2)


def features(x: Tensor, weight: Tensor, activation: str) -> Tensor:
    """Hedgehog's ``phi(x) = [f(x W), f(-x W)]``, positive (2402.04347).

    Args:
        x: ``(B, T, H, D)``.
        weight: ``(H, D, F/2)``, or ``(1, D, F/2)`` for all heads.
        activation: f: ``softmax`` over the F/2 features of a half, or ``exp``.

    Returns:
        ``(B, T, H, F)``, fp32 at least.
    """
    y = torch.einsum("bthd,hdf->bthf", widen(x), widen(weight).expand(x.shape[2], -1, -1))
    halves = (y.softmax(-1), (-y).softmax(-1)) if activation == "softmax" else (y.exp(), (-y).exp())
    return torch.cat(halves, dim=-1)

"""Causal softmax attention (1706.03762) with rotary positions, grouped key-value heads and an optional window."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from plait.errors import CacheError
from plait.mixers.base import Cost, Dims
from plait.mixers.context import Context
from plait.mixers.convolved import ConvolvedMixer
from plait.mixers.linear import default_heads, split_heads
from plait.mixers.softmax_mixer import Rotation, Scoring
from plait.mixers.state import LayerState, Tokens
from plait.nn import RMSNorm
from plait.ops.softmax import attention_matrix, attention_output
from plait.ops.visibility import Causal, Visibility, Window
from plait.options import Options


@dataclass(frozen=True)
class AttentionOptions(Options):
    """Options of softmax attention.

    Args:
        num_heads: query heads H. None: ``hidden_size // head_dim``, or, if that is None too, the fewest heads
            (two at least) that divide ``hidden_size`` into heads of at most 64 channels.
        num_kv_heads: key and value heads N, a divisor of ``num_heads``; None: as many.
        head_dim: channels D of a head. None: ``hidden_size // num_heads``.
        rope_base: base of the rotary embedding; None for no positions.
        partial_rotary_factor: share of a head's channels that the rotary embedding turns, the first ones.
        qk_norm: RMS norm on queries and keys, before the rotary embedding.
        qk_norm_eps: epsilon of that norm; None: the model's.
        qk_norm_per_head: one norm for every head, all with the same weights; otherwise one over all heads together,
            as in OLMo 2.
        window: tokens that a query sees, itself included; None: all before it.
        logit_scaling: constant a, above 1: outside training, scores of the token at position t of its document, from 0,
            are multiplied by ``log(t + a) / log(a)``, as HypeNet's layers without positions do (2601.22156); None: not.
        output_gate: multiply the result with ``sigmoid(W_g x)``.
        qkv_bias: biases on the query, key and value projections.
        use_short_conv: convolve q, k and v before heads are made, as the delta rule's mixers do; softmax attention
            usually does not, but a comparison of mixers on equal footing needs it.
        conv_size: taps of the convolution.
    """

    method: ClassVar[str] = "attention"
    knobs: ClassVar[tuple[str, ...]] = ("logit_scaling",)
    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    rope_base: float | None = 10000.0
    partial_rotary_factor: float = 1.0
    qk_norm: bool = False
    qk_norm_eps: float | None = None
    qk_norm_per_head: bool = True
    window: int | None = None
    logit_scaling: float | None = None
    output_gate: bool = False
    qkv_bias: bool = False
    use_short_conv: bool = False
    conv_size: int = 4

    def __post_init__(self) -> None:
        self.require_positive("num_heads", "num_kv_heads", "head_dim", "rope_base", "window", "conv_size")
        self.require_positive("qk_norm_eps", "partial_rotary_factor")
        self.require(self.partial_rotary_factor <= 1, "partial_rotary_factor", "is a share: 1 at most")
        scales = self.logit_scaling is None or 1 < self.logit_scaling < math.inf
        self.require(scales, "logit_scaling", "divides by its logarithm: a number above 1, such as 500")

    def heads(self, dims: Dims) -> tuple[int, int, int]:
        """Query heads H, key-value heads N and head dim D in a model of these ``dims``.

        Raises:
            OptionError: the options do not fit ``hidden_size``.
        """
        size, H, D = dims.hidden_size, self.num_heads, self.head_dim
        if H is None and D is not None:
            self.require(size % D == 0, "head_dim", f"does not divide hidden_size {size}; set num_heads as well")
            H = size // D
        H = H or default_heads(size, 64)
        if D is None:
            self.require(size % H == 0, "num_heads", f"does not divide hidden_size {size}; set head_dim as well")
            D = size // H
        N = self.num_kv_heads or H
        self.require(H % N == 0, "num_kv_heads", f"must divide num_heads {H}")
        if self.rope_base is not None:
            self.require(D % 2 == 0, "head_dim", f"rotary pairs need an even head dim, not {D}; change it")
            rotated = self.rotated(D)
            pairs = f"rotates {rotated} of the {D} channels of a head, and rotary pairs need an even number, 2 at least"
            self.require(rotated > 0 and rotated % 2 == 0, "partial_rotary_factor", pairs)
        return H, N, D

    def rotated(self, head_dim: int) -> int:
        """Channels of a head that the rotary embedding turns."""
        return int(head_dim * self.partial_rotary_factor)


class Attention(ConvolvedMixer):
    """``softmax(Q K^T / sqrt(D)) V`` over the tokens up to the query's own.

    Query head h reads key-value head ``h // (H // N)``. Keys are cached after the rotary embedding.
    """

    Options = AttentionOptions
    options: AttentionOptions
    has_weights = True

    def __init__(self, dims: Dims, options: AttentionOptions, layer: int) -> None:
        super().__init__(dims, options, layer)
        d = dims.hidden_size
        H, N, D = self.sizes = options.heads(dims)
        self.q_proj = nn.Linear(d, H * D, bias=options.qkv_bias)
        self.k_proj = nn.Linear(d, N * D, bias=options.qkv_bias)
        self.v_proj = nn.Linear(d, N * D, bias=options.qkv_bias)
        self.o_proj = nn.Linear(H * D, d, bias=False)
        self.add_convolutions(True, q=H * D, k=N * D, v=N * D)
        if options.qk_norm:
            eps = options.qk_norm_eps or dims.norm_eps
            self.q_norm = RMSNorm(D if options.qk_norm_per_head else H * D, eps)
            self.k_norm = RMSNorm(D if options.qk_norm_per_head else N * D, eps)
        if options.output_gate:
            self.g_proj = nn.Linear(d, H * D, bias=False)

    def queries_keys_values(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``(B, T, H, D)``, keys and values ``(B, T, N, D)``, normed, rotated and scaled."""
        D = self.sizes[2]
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.options.use_short_conv:
            q, k, v = (self.convolve(name, y, context) for name, y in (("q", q), ("k", k), ("v", v)))
        if self.options.qk_norm and not self.options.qk_norm_per_head:
            q, k = self.q_norm(q), self.k_norm(k)
        # a convolution leaves time side by side, torch's fused kernels take channels only
        q, k, v = (split_heads(y.contiguous(), D) for y in (q, k, v))
        if self.options.qk_norm and self.options.qk_norm_per_head:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.options.rope_base is not None:
            q, k = (self._rotate(y, context, self.options.rope_base) for y in (q, k))
        if self.options.logit_scaling is not None and not self.training:
            q = scaled_queries(q, context.index, self.options.logit_scaling)
        return q, k, v

    def _rotate(self, x: Tensor, context: Context, base: float) -> Tensor:
        """``x`` ``(B, T, H, D)``, its first channels rotated by the positions."""
        rotated = self.options.rotated(x.shape[-1])
        if rotated == x.shape[-1]:
            return context.rotate(x, base)
        return torch.cat([context.rotate(x[..., :rotated], base), x[..., rotated:]], dim=-1)

    keys_in = "kv"

    def head_sizes(self) -> tuple[int, int, int, int]:
        """See :class:`~plait.mixers.softmax_mixer.SoftmaxMixer`, as of the four methods that follow."""
        heads, kv_heads, size = self.sizes
        return heads, kv_heads, size, size

    def scoring(self) -> Scoring:
        return Scoring(self.sizes[2] ** -0.5)

    def visibility(self) -> Visibility:
        return Causal() if self.options.window is None else Window(self.options.window)

    def rotation(self) -> Rotation | None:
        base = self.options.rope_base
        return None if base is None else Rotation(base, 0, self.options.rotated(self.sizes[2]))

    def finish(self, o: Tensor, x: Tensor, parts: tuple[Tensor, Tensor, Tensor], context: Context) -> Tensor:
        o = o.flatten(2)
        if self.options.output_gate:
            o = o * torch.sigmoid(self.g_proj(x))
        return self.o_proj(o)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        q, k, v = parts = self.queries_keys_values(x, context)
        start = context.padding
        if context.state is not None:
            if context.cu_seqlens is not None:
                raise CacheError(
                    f"Layer {self.layer}: packed documents cannot be cached by softmax attention; "
                    "run them without a cache, or as rows of a padded batch."
                )
            (k, v), start = context.state["kv"].append(k, v, padding=context.padding)  # type: ignore[attr-defined]
        seen, lengths = self.visibility(), lengths_of(k, start)
        if context.pairs is not None:
            count_pairs(context, self.layer, q, k.shape[1], start, seen)
        if context.sequence is not None:
            o = context.sequence.attend(q, k, v, seen)
        else:
            o = attention_output(q, k, v, seen, lengths=lengths, cu_seqlens=context.cu_seqlens)
            if context.attentions is not None:
                matrix = attention_matrix(q, k, seen, lengths=lengths, cu_seqlens=context.cu_seqlens)
                context.attentions.append(matrix.to(q.dtype))
        return self.finish(o, x, parts, context)

    def new_state(self) -> LayerState:
        return LayerState({"kv": Tokens("keys", "values", window=self.options.window), **self.tails()})

    @classmethod
    def code_path(cls, device_type: str) -> tuple[str, str]:
        return "sdpa", f"scaled_dot_product_attention of torch, which has its own kernels for {device_type}"

    @classmethod
    def cost(cls, dims: Dims, T: int, options: AttentionOptions, *, cache_dtype: torch.dtype = torch.bfloat16) -> Cost:
        """See :meth:`Mixer.cost`. A window of w tokens costs ``2 w (2T - w) H D``, which is ``2 T^2 H D`` for w = T."""
        H, N, D = options.heads(dims)
        seen = min(T, options.window or T)
        stored = T if options.window is None else min(T, options.window - 1)
        tails = (options.conv_size - 1) * (H + 2 * N) * D if options.use_short_conv else 0
        return Cost(
            flops_prefill=2 * seen * (2 * T - seen) * H * D,
            flops_decode=4 * min(T + 1, options.window or T + 1) * H * D,
            state_bytes=(2 * stored * N * D + tails) * cache_dtype.itemsize,
        )

    def effective_weights(self, x: Tensor, context: Context | None = None) -> Tensor:
        context = replace(context or Context.plain(x), state=None)
        q, k, _ = self.queries_keys_values(x, context)
        lengths = lengths_of(k, context.padding)
        matrix = attention_matrix(q, k, self.visibility(), lengths=lengths, cu_seqlens=context.cu_seqlens)
        return matrix.to(q.dtype)


def scaled_queries(q: Tensor, index: Tensor, constant: float) -> Tensor:
    """``q log(t + a) / log(a)`` for each query's token number t in its document.

    A text longer than the training's has more keys to tell apart, so its scores are drawn further apart (HypeNet,
    2601.22156).

    Args:
        q: ``(B, T, H, D)``.
        index: ``(B, T)``, from 0 in each document.
        constant: a, above 1.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    factor = torch.log(index.to(dtype) + constant) / math.log(constant)
    return (q * factor[..., None, None]).to(q.dtype)


def count_pairs(
    context: Context, layer: int, q: Tensor, stored: int, start: Tensor | None, visibility: Visibility
) -> None:
    """Add the number of visible query-key products of a layer to the meter, which the context must have.

    Args:
        context: of this pass.
        layer: index of the layer.
        q: ``(B, T, H, D)``.
        stored: key slots S, without those of other processes.
        start: ``(B,)`` first real slot of each row, or None.
        visibility: what each head's queries see.
    """
    batch, length, heads = q.shape[:3]
    stored += 0 if context.sequence is None else context.sequence.offset
    if context.cu_seqlens is not None:
        rows = [(size, size) for size in context.cu_seqlens.diff().tolist()]
    else:
        skipped = [0] * batch if start is None else start.tolist()
        padded = [0] * batch if context.padding is None else context.padding.tolist()
        rows = [(length - p, stored - s) for p, s in zip(padded, skipped, strict=True)]
    pairs = sum(visibility.pairs([held], held - new) for new, held in rows)
    context.pairs[layer] = context.pairs.get(layer, 0) + pairs * heads  # type: ignore[index,union-attr]


def lengths_of(stored: Tensor, start: Tensor | None) -> Tensor | None:
    """Real tokens of each row ``(B,)`` of keys ``(B, S, ...)`` whose first real slots are ``start``, or None."""
    return None if start is None else stored.shape[1] - start

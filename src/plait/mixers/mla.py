"""Multi-head latent attention: softmax attention that caches one small vector a token for all heads (2405.04434)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from plait.errors import CacheError
from plait.mixers.attention import count_pairs, lengths_of
from plait.mixers.base import Cost, Dims, Mixer
from plait.mixers.context import Context
from plait.mixers.linear import default_heads, linear, split_heads
from plait.mixers.softmax_mixer import Rotation, Scoring
from plait.mixers.state import LayerState, Tokens
from plait.nn import RMSNorm
from plait.ops.softmax import attention_matrix, attention_output
from plait.ops.visibility import Causal, Visibility
from plait.options import Options


class LatentSizes(NamedTuple):
    """Sizes of one layer.

    Args:
        heads: number of heads H.
        plain: channels K of a query or key head without positions.
        rotated: channels R of a query head, and of the one key that all heads share, with positions.
        values: channels V of a value head.
        latent: channels C of the vector that keys and values are made from.
    """

    heads: int
    plain: int
    rotated: int
    values: int
    latent: int


@dataclass(frozen=True)
class MLAOptions(Options):
    """Options of multi-head latent attention. What is None follows from the rest as in DeepSeek-V2.

    Args:
        num_heads: heads H. None: the fewest (two at least) that divide ``hidden_size`` into heads of at most 128
            channels.
        qk_nope_head_dim: channels K of a query or key head without positions. None: ``hidden_size // num_heads``.
        qk_rope_head_dim: channels R with positions, whose key all heads share. None: half of K.
        v_head_dim: channels V of a value head. None: K.
        kv_lora_rank: channels C of the latent vector. None: 4 K.
        q_lora_rank: channels of a latent vector for the queries; None: they are projected directly.
        rope_base: base of the rotary embedding; None for no positions, as in Kimi Linear.
        norm_eps: epsilon of the norms of the latent vectors; None: the model's.
    """

    method: ClassVar[str] = "mla"
    num_heads: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int | None = None
    kv_lora_rank: int | None = None
    q_lora_rank: int | None = None
    rope_base: float | None = 10000.0
    norm_eps: float | None = None

    def __post_init__(self) -> None:
        self.require_positive("num_heads", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank")
        self.require_positive("q_lora_rank", "rope_base", "norm_eps")
        even = self.rope_base is None or (self.qk_rope_head_dim or 2) % 2 == 0
        self.require(even, "qk_rope_head_dim", "rotary pairs need an even number")

    def heads(self, dims: Dims) -> LatentSizes:
        """Sizes in a model of these ``dims``.

        Raises:
            OptionError: the options do not fit ``hidden_size``.
        """
        size = dims.hidden_size
        H = self.num_heads or default_heads(size, 128)
        if self.qk_nope_head_dim is None:
            self.require(size % H == 0, "num_heads", f"does not divide hidden_size {size}; set qk_nope_head_dim too")
        K = self.qk_nope_head_dim or size // H
        R = self.qk_rope_head_dim or max(2, 2 * (K // 4))
        return LatentSizes(H, K, R, self.v_head_dim or K, self.kv_lora_rank or 4 * K)


class MLA(Mixer):
    """``softmax((q k^T + q' k'^T) / sqrt(K + R)) v`` over the tokens up to the query's own.

    ``c = RMS(W_a x)`` is all that is cached, beside ``k' = rotary(W_r x)``, one key for all heads; each head takes its
    keys and values from it, ``[k | v] = W_b c``. A single new token does not: ``q k^T = (q W_b) c^T``, so its queries
    meet the latent vectors themselves, and what they read is turned into values at the end. That needs the matrix
    ``W_b`` itself; where ``kv_b_proj`` is more than one (an adapter, quantised or kept elsewhere), the new token makes
    keys and values as well.
    """

    Options = MLAOptions
    options: MLAOptions
    has_weights = True

    def __init__(self, dims: Dims, options: MLAOptions, layer: int) -> None:
        super().__init__(dims, options, layer)
        d, eps = dims.hidden_size, options.norm_eps or dims.norm_eps
        self.sizes = options.heads(dims)
        H, K, R, V, C = self.sizes
        if options.q_lora_rank is None:
            self.q_proj = linear(d, H * (K + R))
        else:
            self.q_a_proj = linear(d, options.q_lora_rank)
            self.q_a_norm = RMSNorm(options.q_lora_rank, eps)
            self.q_b_proj = linear(options.q_lora_rank, H * (K + R))
        self.kv_a_proj = linear(d, C + R)
        self.kv_a_norm = RMSNorm(C, eps)
        self.kv_b_proj = linear(C, H * (K + V))
        self.o_proj = linear(H * V, d)

    def queries(self, x: Tensor, context: Context) -> Tensor:
        """Queries ``(B, T, H, K + R)``, the last R channels rotated."""
        q = self.q_proj(x) if self.options.q_lora_rank is None else self.q_b_proj(self.q_a_norm(self.q_a_proj(x)))
        plain, rotated = split_heads(q, self.sizes.plain + self.sizes.rotated).split(self.sizes[1:3], dim=-1)
        return torch.cat([plain, self._rotate(rotated, context)], dim=-1)

    def latents(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Latent vectors ``(B, T, 1, C)`` and the shared keys ``(B, T, 1, R)``."""
        latent, shared = self.kv_a_proj(x).unsqueeze(2).split([self.sizes.latent, self.sizes.rotated], dim=-1)
        return self.kv_a_norm(latent), self._rotate(shared, context)

    def keys_values(self, latent: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
        """Keys ``(B, S, H, K + R)`` and values ``(B, S, H, V)`` of every head."""
        H, K, _, V, _ = self.sizes
        k, v = split_heads(self.kv_b_proj(latent.squeeze(2)), K + V).split([K, V], dim=-1)
        return torch.cat([k, shared.expand(-1, -1, H, -1)], dim=-1), v

    def _rotate(self, x: Tensor, context: Context) -> Tensor:
        return x if self.options.rope_base is None else context.rotate(x, self.options.rope_base)

    keys_in = "latent"

    def head_sizes(self) -> tuple[int, int, int, int]:
        """See :class:`~plait.mixers.softmax_mixer.SoftmaxMixer`, as of the five methods that follow.

        Policies keep the keys and values of every head, which are larger than the latent vectors.
        """
        H, K, R, V, _ = self.sizes
        return H, H, K + R, V

    def queries_keys_values(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        return self.queries(x, context), *self.keys_values(*self.latents(x, context))

    def scoring(self) -> Scoring:
        return Scoring((self.sizes.plain + self.sizes.rotated) ** -0.5)

    def visibility(self) -> Visibility:
        return Causal()

    def rotation(self) -> Rotation | None:
        base = self.options.rope_base
        return None if base is None else Rotation(base, self.sizes.plain, self.sizes.rotated)

    def finish(self, o: Tensor, x: Tensor, parts: tuple[Tensor, Tensor, Tensor], context: Context) -> Tensor:
        return self.o_proj(o.flatten(2))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        q = self.queries(x, context)
        latent, shared = self.latents(x, context)
        start = context.padding
        if context.state is not None:
            if context.cu_seqlens is not None:
                raise CacheError(
                    f"Layer {self.layer}: packed documents cannot be cached by latent attention; "
                    "run them without a cache, or as rows of a padded batch."
                )
            (latent, shared), start = context.state["latent"].append(  # type: ignore[attr-defined]
                latent, shared, padding=context.padding
            )
        seen, lengths = self.visibility(), lengths_of(latent, start)
        if context.pairs is not None:
            count_pairs(context, self.layer, q, latent.shape[1], start, seen)
        if context.attentions is not None and context.sequence is None:
            k, _ = self.keys_values(latent, shared)
            matrix = attention_matrix(q, k, seen, lengths=lengths, cu_seqlens=context.cu_seqlens)
            context.attentions.append(matrix.to(q.dtype))
        if context.sequence is not None:
            o = context.sequence.attend(q, *self.keys_values(latent, shared), seen)
        elif context.phase == "decode" and _is_matrix(self.kv_b_proj):
            o = self._attend_latents(q, latent, shared, lengths)
        else:
            k, v = self.keys_values(latent, shared)
            o = attention_output(q, k, v, seen, lengths=lengths, cu_seqlens=context.cu_seqlens)
        return self.o_proj(o.flatten(2))

    def _attend_latents(self, q: Tensor, latent: Tensor, shared: Tensor, lengths: Tensor | None) -> Tensor:
        """The same as attention on all keys and values, without making them."""
        H, K, R, V, C = self.sizes
        to_keys, to_values = self.kv_b_proj.weight.view(H, K + V, C).split([K, V], dim=1)
        plain, rotated = q.split([K, R], dim=-1)
        q = torch.cat([torch.einsum("bthk,hkc->bthc", plain, to_keys), rotated], dim=-1)
        k = torch.cat([latent, shared], dim=-1)
        # the keys are the values as well, with R channels too many: fused kernels know one width
        read = attention_output(q, k, k, self.visibility(), scale=self.scoring().scale, lengths=lengths)[..., :C]
        return torch.einsum("bthc,hvc->bthv", read, to_values)

    def new_state(self) -> LayerState:
        return LayerState({"latent": Tokens("latent", "rotated")})

    @classmethod
    def code_path(cls, device_type: str) -> tuple[str, str]:
        return "sdpa", f"scaled_dot_product_attention of torch, which has its own kernels for {device_type}"

    @classmethod
    def cost(cls, dims: Dims, T: int, options: MLAOptions, *, cache_dtype: torch.dtype = torch.bfloat16) -> Cost:
        """See :meth:`Mixer.cost`. One more token scores and reads latent vectors: ``2 (T + 1) H (2 C + R)``."""
        H, K, R, V, C = options.heads(dims)
        return Cost(
            flops_prefill=T * T * H * (K + R + V),
            flops_decode=2 * (T + 1) * H * (2 * C + R),
            state_bytes=T * (C + R) * cache_dtype.itemsize,
        )

    def effective_weights(self, x: Tensor, context: Context | None = None) -> Tensor:
        context = replace(context or Context.plain(x), state=None)
        q = self.queries(x, context)
        k, _ = self.keys_values(*self.latents(x, context))
        lengths = lengths_of(k, context.padding)
        matrix = attention_matrix(q, k, self.visibility(), lengths=lengths, cu_seqlens=context.cu_seqlens)
        return matrix.to(q.dtype)


def _is_matrix(module: Any) -> bool:
    """Whether a module does nothing but multiply with a plain ``weight`` that is at hand."""
    linear: bool = type(module) is nn.Linear and module.bias is None
    if not linear or "forward" in vars(module):  # as accelerate sets it
        return False
    hooks = [module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks]
    return not any(hooks) and not hasattr(module.weight, "__tensor_flatten__")  # as torchao's quantised weights have

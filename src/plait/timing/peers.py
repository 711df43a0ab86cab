"""Whom the recurrences are compared with, each called on the inputs of plait's own function.

Shapes are ``(B, T, H, D)``. The peers of transformers are its code for machines without kernels; where a kernel package
is installed transformers wraps these functions, and the torch code is inside.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait import ops

Inputs = tuple[Tensor, ...]
Function = Callable[..., Tensor]


def unchanged(inputs: Inputs) -> Inputs:
    """The layout of most peers: plait's own."""
    return inputs


@dataclass(frozen=True)
class Peer:
    """Someone else's function on the same inputs.

    Args:
        name: as it is printed.
        function: from the inputs to the output ``(B, T, H, V)``.
        same: whether it computes the same function, so that its result must agree.
        prepare: brings plait's inputs into the peer's layout; done once, outside the time.
        loop: whether it takes one token at a time.
    """

    name: str
    function: Function
    same: bool = True
    prepare: Callable[[Inputs], Inputs] = unchanged
    loop: bool = False


def python_loop(function: Function) -> Peer:
    """plait's function on its ``reference`` backend: the recurrence as it is written, a token at a time."""

    def looped(*inputs: Tensor) -> Tensor:
        with ops.backend("reference"):
            return function(*inputs)

    return Peer("Python loop", looped, loop=True)


def softmax_attention() -> Peer:
    """Causal softmax attention of torch on the same queries, keys and values: what a recurrence would replace."""

    def softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    return Peer("softmax (SDPA)", softmax, same=False, prepare=lambda inputs: inputs[:3])


def chunked_delta_rule() -> Peer:
    """``torch_chunk_gated_delta_rule`` of transformers' Qwen3-Next."""
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    chunked = inspect.unwrap(torch_chunk_gated_delta_rule)

    def function(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor) -> Tensor:
        return chunked(q, k, v, g=log_decay, beta=beta)[0]

    return Peer("transformers", function)


def recurrent_delta_rule() -> Peer:
    """``torch_recurrent_gated_delta_rule`` of transformers' Qwen3-Next, a loop over tokens."""
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

    recurrent = inspect.unwrap(torch_recurrent_gated_delta_rule)

    def function(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor) -> Tensor:
        return recurrent(q, k, v, g=log_decay, beta=beta)[0]

    return Peer("transformers, recurrent", function, loop=True)


def mamba2() -> Peer:
    """``mamba2_chunk_scan`` of transformers' Mamba-2, which is linear attention with a decay per token and head.

    With time steps of one, ``A`` takes the log decay, ``B`` the keys, ``C`` the queries, the hidden states the values.
    Chunks have 64 tokens, the fastest of 32, 64, 128 and 256 on a CPU; the model's own default is 256.
    """
    from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

    scan = inspect.unwrap(mamba2_chunk_scan)

    def function(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
        steps = torch.ones_like(log_decay)
        return scan(v, steps, log_decay, k, q * q.shape[-1] ** -0.5, chunk_size=64).to(v.dtype)

    return Peer("transformers, Mamba-2", function)


def lightning(log_decay: Tensor, width: int, dtype: torch.dtype) -> Peer:
    """Lightning attention of transformers' MiniMax, which is linear attention with a constant decay per head.

    Its loop over blocks is only reachable through the layer. So the layer is built with identities for the projections,
    the activation and the norm, and a gate that is one; queries, keys and values are packed beforehand, as its
    projection would deliver them. What is timed is its loop, plus one multiplication of the output by the gate.

    Args:
        log_decay: ``(H,)``, one constant a head.
        width: channels D of a head.
        dtype: of queries, keys and values; the layer holds its decays in it too.
    """
    from transformers.models.minimax import MiniMaxConfig
    from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

    heads = log_decay.shape[0]
    # hidden_size=1 keeps the projections small that are then replaced
    config = MiniMaxConfig(hidden_size=1, num_attention_heads=heads, head_dim=width, num_hidden_layers=2)
    layer: Any = MiniMaxLightningAttention(config, layer_idx=0)
    layer.qkv_proj, layer.norm, layer.out_proj, layer.act_fn = (nn.Identity() for _ in range(4))
    layer.output_gate = _OpenGate()
    layer.slope_rate = -log_decay.cpu()[:, None, None]  # the layer makes its factors on the CPU
    layer.query_decay, layer.key_decay, layer.diagonal_decay = layer.decay_factors(layer.slope_rate)
    layer.to(log_decay.device, dtype)

    def pack(inputs: Inputs) -> Inputs:
        q, k, v = inputs[:3]
        return (torch.cat([q * width**-0.5, k, v], dim=-1).flatten(2),)

    def function(packed: Tensor) -> Tensor:
        output = layer(packed, None, None)[0]
        return output.unflatten(-1, (heads, width))

    return Peer("transformers, Lightning", function, prepare=pack)


class _OpenGate(nn.Module):
    """A gate before its sigmoid, which is 1 at this value in every precision."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_full((1,), 40.0)


def chunked_channel_decay(chunk: int = 16) -> Peer:
    """Linear attention with a decay per channel in plain PyTorch, as one writes it from the formula.

    With ``G`` the log decay summed from the start of a chunk, the scores inside it are the lower half of
    ``(q e^G) (k e^-G)^T`` (2312.06635, section 4). ``e^-G`` overflows fp32 where ``G`` falls below -88, so chunks
    must be short: 16 tokens are safe down to a decay of ``e^-5.5`` a token. All chunks' scores are one product; a loop
    carries the state from chunk to chunk.

    Args:
        chunk: tokens of a chunk.
    """

    def function(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
        length, width = q.shape[1], q.shape[3]
        padding = (0, 0, 0, 0, 0, -length % chunk)
        q, k, v, log_decay = (  # (B, T, H, D) -> (B, H, N, C, D)
            F.pad(x.float(), padding).transpose(1, 2).unflatten(2, (-1, chunk)) for x in (q, k, v, log_decay)
        )
        G = log_decay.cumsum(-2)
        end = G[..., -1:, :]
        reading = q * width**-0.5 * G.exp()
        inside = (reading @ (k * (-G).exp()).mT).tril() @ v
        writing, fading = (k * (end - G).exp()).mT, end.exp().mT
        state = v.new_zeros(*writing.shape[:2], width, v.shape[-1])
        outputs = []
        # unbind, since the gradient of an index is as large as the whole tensor
        for parts in zip(*(x.unbind(2) for x in (inside, reading, fading, writing, v)), strict=True):
            output, read, decay, write, value = parts
            outputs.append(output + read @ state)
            state = decay * state + write @ value
        return torch.cat(outputs, dim=2)[:, :, :length].transpose(1, 2)

    return Peer(f"PyTorch, chunks of {chunk}", function)


def chunked_scan(chunk: int = 16) -> Peer:
    """A first-order scan in plain PyTorch, as one writes it from the formula.

    With ``G`` the log decay summed from the start of a chunk, the states inside it are ``e^G cumsum(u e^-G)`` and what
    enters, times ``e^G``. ``e^-G`` overflows as in :func:`chunked_channel_decay`, so chunks must be short; a loop
    carries the state from chunk to chunk.

    Args:
        chunk: tokens of a chunk.
    """

    def function(log_a: Tensor, u: Tensor) -> Tensor:
        length = u.shape[1]
        padding = (0, 0, 0, -length % chunk)
        log_a, u = (F.pad(x.float(), padding).unflatten(1, (-1, chunk)) for x in (log_a, u))  # (B, N, C, D)
        G = log_a.cumsum(2)
        entered = G.exp()
        inside = entered * (u * (-G).exp()).cumsum(2)
        state = u.new_zeros(u.shape[0], u.shape[3])
        outputs = []
        for output, decay in zip(inside.unbind(1), entered.unbind(1), strict=True):
            outputs.append(output + decay * state[:, None])
            state = outputs[-1][:, -1]
        return torch.cat(outputs, dim=1)[:, :length]

    return Peer(f"PyTorch, chunks of {chunk}", function)


def fla(operation: str, device: str) -> list[Peer]:
    """The kernel of flash-linear-attention for an operation; nobody on a CPU, or where it is not installed.

    Args:
        operation: ``delta_rule``, ``decay per head``, ``decay per channel`` or ``linear_scan``.
        device: ``cpu`` or ``cuda``.
    """
    installed = next(status.available for status in ops.backends() if status.name == "fla")
    return [Peer("fla", _FLA[operation])] if device == "cuda" and installed else []


def _fla_delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor) -> Tensor:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    return chunk_gated_delta_rule(q, k, v, log_decay, beta)[0]


def _fla_decay_per_head(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    from fla.ops.simple_gla import chunk_simple_gla

    return chunk_simple_gla(q, k, v, log_decay)[0]


def _fla_decay_per_channel(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    from fla.ops.gla import chunk_gla

    return chunk_gla(q, k, v, log_decay)[0]


def _fla_scan(log_a: Tensor, u: Tensor) -> Tensor:
    from fla.ops.hgrn import fused_recurrent_hgrn

    return fused_recurrent_hgrn(u.float(), log_a)[0].to(u.dtype)


_FLA: dict[str, Function] = {
    "delta_rule": _fla_delta_rule,
    "decay per head": _fla_decay_per_head,
    "decay per channel": _fla_decay_per_channel,
    "linear_scan": _fla_scan,
}

"""The ``fla`` backend: Triton kernels of flash-linear-attention on CUDA tensors.

Checked by ``make gpu`` only, since the kernels do not run on CPU. They compute in the inputs' dtype with fp32
accumulation (TF32 for fp32 inputs), so they agree with the other backends to that precision.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from importlib.metadata import version
from importlib.util import find_spec
from typing import TypeVar

import torch
from packaging.version import Version
from torch import Tensor
from torch.nn import functional as F

from plait.ops.first_order import refuse_second_order

Function = TypeVar("Function", bound=Callable[..., Tensor | tuple[Tensor, ...]])

#: Tokens that fla's scan treats as one chunk.
_SCAN_CHUNK = 128


def _first_order(function: Function) -> Function:
    """Its kernels' backwards know the first derivative only and would return constants: they refuse instead."""

    @wraps(function)
    def guarded(*arguments: object, **options: object) -> Tensor | tuple[Tensor, ...]:
        found = function(*arguments, **options)
        if not torch.compiler.is_compiling():
            for x in (found,) if isinstance(found, Tensor) else found:
                if x.requires_grad:
                    x.register_hook(_refuse)
        return found

    return guarded  # type: ignore[return-value]


def _refuse(_: Tensor) -> None:
    refuse_second_order("The fla backend")


def refuses(v: Tensor, key_width: int = 0) -> str | None:
    """Why the kernels cannot take these tensors, or None."""
    if v.device.type != "cuda":
        return f"its kernels need CUDA tensors and the tensors are on {v.device.type}"
    if v.dtype == torch.float64:
        return "its kernels have no fp64"
    if key_width > 256:
        return f"its kernels take key widths up to 256, not {key_width}"
    return None


def refuses_gradient(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor | None, log_decay: Tensor | None, state: Tensor | None
) -> str | None:
    """Why fla's backward cannot serve this call, or None.

    Its kernels with one decay a head share a backward that some versions of Triton compile wrongly on Hopper chips, and
    that fla 0.6 therefore refuses to run.
    """
    needed = [x for x in (q, k, v, beta, log_decay, state) if x is not None and x.requires_grad]
    if not (needed and torch.is_grad_enabled()) or (log_decay is not None and log_decay.dim() == 4):
        return None
    if beta is None:
        gated = log_decay is not None and (log_decay.dim() == 3 or log_decay.requires_grad)
    else:
        gated = log_decay is not None or v.dtype == torch.float32
    return _wrong_on_hopper() if gated else None


@cache
def _wrong_on_hopper() -> str | None:
    if torch.cuda.get_device_capability()[0] != 9 or find_spec("tilelang") is not None:
        return None
    installed = version("triton")
    if Version("3.4") <= Version(installed) < Version("3.7.1"):
        return f"Triton {installed} compiles fla's backward wrongly on this chip; pip install 'triton>=3.7.1'"
    return None


@_first_order
def linear_scan(log_a: Tensor, u: Tensor, state: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """The scan of HGRN: by chunks, or token by token where documents are packed or the row is short."""
    from fla.ops.hgrn import chunk_hgrn, fused_recurrent_hgrn

    wide, decay = u.float(), log_a.float()
    if cu_seqlens is not None or u.shape[1] <= _SCAN_CHUNK:
        start = None if state is None else state.float()
        h, last = fused_recurrent_hgrn(
            wide, decay, initial_state=start, output_final_state=True, cu_seqlens=_on(u, cu_seqlens)
        )
        return h.to(u.dtype), last.float()
    if state is not None:  # chunk_hgrn has no gradient of its initial and final states
        first = wide[:, :1] + decay[:, :1].exp() * state.float()[:, None]
        wide = torch.cat([first, wide[:, 1:]], dim=1)
    h, _ = chunk_hgrn(wide, decay)
    return h.to(u.dtype), h[:, -1].clone()


@_first_order
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    log_decay: Tensor | None,
    scale: float,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Linear attention (``beta`` None) or the delta rule, by the kernel for the shape of the decay."""
    q, k = q.to(v.dtype), k.to(v.dtype)
    heads = v.shape[2]
    decay = None if log_decay is None else log_decay.float()
    given = {
        "scale": scale,
        "initial_state": None if state is None else state.float(),
        "output_final_state": True,
        "cu_seqlens": _on(v, cu_seqlens),
    }
    if beta is None:
        q, k = _per_value_head(q, heads), _per_value_head(k, heads)
        if decay is not None and decay.dim() == 4:
            from fla.ops.gla import chunk_gla

            return chunk_gla(q, k, v, decay, **given)
        from fla.ops.simple_gla import chunk_simple_gla

        if decay is not None and decay.dim() == 1:
            if not decay.requires_grad:
                return chunk_simple_gla(q, k, v, g_gamma=decay, **given)
            decay = decay.expand(*v.shape[:2], heads).contiguous()  # g_gamma would have no gradient
        return chunk_simple_gla(q, k, v, decay, **given)
    beta = beta.to(v.dtype)
    if decay is not None and decay.dim() == 4:
        from fla.ops.kda import chunk_kda

        return chunk_kda(q, k, v, decay, beta, **given)
    if decay is None and v.dtype != torch.float32:  # chunk_delta_rule has no fp32
        from fla.ops.delta_rule import chunk_delta_rule

        q, k = _per_value_head(q, heads), _per_value_head(k, heads)
        return chunk_delta_rule(q, k, v, beta, **given)
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    if decay is None:
        decay = v.new_zeros(v.shape[:3], dtype=torch.float32)
    elif decay.dim() == 1:
        decay = decay.expand(*v.shape[:2], heads).contiguous()
    return chunk_gated_delta_rule(q, k, v, decay, beta, **given)


@_first_order
def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor | None, silu: bool, cu_seqlens: Tensor | None
) -> Tensor:
    """The short causal convolution, and silu after it, in one kernel; arguments as in ``causal_convolution``."""
    from fla.modules.convolution import causal_conv1d

    # fla keeps as many inputs as there are taps, of which the oldest meets none
    state = None if tail is None else F.pad(tail.to(x.dtype), (0, 0, 1, 0)).transpose(1, 2).contiguous()
    y, _ = causal_conv1d(
        x, weight, bias, initial_state=state, activation="silu" if silu else None, cu_seqlens=_on(x, cu_seqlens)
    )
    return y


@_first_order
def l2_norm(x: Tensor, eps: float) -> Tensor:
    """``x * rsqrt(sum(x^2) + eps)`` over the last axis."""
    from fla.modules.l2norm import l2norm

    return l2norm(x, eps)


@_first_order
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x * rsqrt(mean(x^2) + eps) * weight`` over the last axis."""
    from fla.modules.layernorm import rms_norm

    return rms_norm(x, weight, None, eps=eps)


@_first_order
def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float, activation: str) -> Tensor:
    """``rms_norm(x) * activation(gate)``, ``silu`` or ``sigmoid``."""
    from fla.modules.fused_norm_gate import rms_norm_gated

    return rms_norm_gated(x, gate, weight, None, activation, eps=eps)


@_first_order
def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """``x`` ``(B, T, H, D)`` rotated by tables ``(B, T, 1, D/2)``, channel ``i`` with channel ``i + D/2``."""
    from fla.modules.rotary import rotary_embedding

    # one row of B T tokens, since fla's table has no rows; in the table's type, which fla asks for
    row = x.to(cosine.dtype).flatten(0, 1)[None]
    return rotary_embedding(row, cosine.flatten(0, 2), sine.flatten(0, 2)).view(x.shape).to(x.dtype)


def _per_value_head(x: Tensor, heads: int) -> Tensor:
    """Queries or keys ``(B, T, H, K)`` repeated for the value heads that share them."""
    return x if x.shape[2] == heads else x.repeat_interleave(heads // x.shape[2], dim=2)


def _on(x: Tensor, cu_seqlens: Tensor | None) -> Tensor | None:
    """The borders where the kernels read them, beside ``x``."""
    return None if cu_seqlens is None else cu_seqlens.to(x.device)

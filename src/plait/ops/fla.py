"""The ``fla`` backend: Triton kernels of flash-linear-attention on CUDA tensors.

Checked by ``make gpu`` only, since the kernels do not run on CPU. They compute in the inputs' dtype with fp32
accumulation (TF32 for fp32 inputs), so they agree with the other backends to that precision.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from importlib.util import find_spec

import torch
from packaging.version import Version
from torch import Tensor


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


def linear_scan(log_a: Tensor, u: Tensor, state: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """``fused_recurrent_hgrn``: the scan of HGRN, one program per block of channels."""
    from fla.ops.hgrn import fused_recurrent_hgrn

    start = None if state is None else state.float()
    h, last = fused_recurrent_hgrn(
        u.float(), log_a.float(), initial_state=start, output_final_state=True, cu_seqlens=_on(u, cu_seqlens)
    )
    return h.to(u.dtype), last.float()


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
        q, k = (x.repeat_interleave(heads // x.shape[2], dim=2) for x in (q, k))
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

        q, k = (x.repeat_interleave(heads // x.shape[2], dim=2) for x in (q, k))
        return chunk_delta_rule(q, k, v, beta, **given)
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    if decay is None:
        decay = v.new_zeros(v.shape[:3], dtype=torch.float32)
    elif decay.dim() == 1:
        decay = decay.expand(*v.shape[:2], heads).contiguous()
    return chunk_gated_delta_rule(q, k, v, decay, beta, **given)


def _on(x: Tensor, cu_seqlens: Tensor | None) -> Tensor | None:
    """The borders where the kernels read them, beside ``x``."""
    return None if cu_seqlens is None else cu_seqlens.to(x.device)

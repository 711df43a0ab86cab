"""The three recurrences that carry nearly every linear mixer: checks, dtypes, dispatch.

Layout ``(B, T, H, D)``; log decay ``<= 0``; states fp32 (fp64 for fp64 inputs). Everything is computed in the
state's dtype, also under autocast, and the output is cast to the dtype of the values. A log decay of ``-inf``
forgets everything, exactly like any value below about ``-104`` (``-746`` in fp64), where ``exp`` gives zero.
Sizes of 0 give empty results, and a row without tokens leaves its state as it was. Only the ``reference`` backend has
second derivatives and serves the transforms of ``torch.func``; the others refuse.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from plait.errors import BackendUnavailable
from plait.ops import checks, chunkwise, dispatch, native, reference


def linear_scan(
    log_a: Tensor, u: Tensor, *, state: Tensor | None = None, cu_seqlens: Tensor | None = None, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """First-order scan ``h_t = exp(log_a_t) h_{t-1} + u_t`` of HGRN (2311.04823, equation 5), RAT and RG-LRU.

    Args:
        log_a: log decay ``(B, T, D)``, ``<= 0``.
        u: input ``(B, T, D)``.
        state: ``h`` before the first step ``(B, D)``, or ``(N, D)`` with ``cu_seqlens``; None for zeros.
        cu_seqlens: ``(N + 1,)`` int64 borders of the N documents packed into the single row (``B == 1``).
        backend: ``auto``, ``reference``, ``torch``, ``native`` or ``fla``.

    Returns:
        ``h`` ``(B, T, D)`` in ``u``'s dtype and the last ``h`` of each row or document in the state's dtype.

    Raises:
        OptionError: arguments that do not fit (the message names which), or an unknown backend.
        BackendUnavailable: the backend cannot serve here, or a second derivative was asked of it.
    """
    cu_seqlens, some = checks.linear_scan(log_a, u, state, cu_seqlens)
    chosen = _backend(backend, 0, some, log_a, u, state)
    if chosen == "fla":
        from plait.ops import fla

        return fla.linear_scan(log_a, u, state, cu_seqlens)
    if chosen == "native":
        return native.linear_scan(log_a, u, state, cu_seqlens)
    implementation = reference if chosen == "reference" else chunkwise
    dtype = _compute_dtype(log_a, u)
    with _no_autocast(u):
        h, last = implementation.linear_scan(log_a.to(dtype), u.to(dtype), _cast(state, dtype), cu_seqlens)
    return h.to(u.dtype), last


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    *,
    scale: float | None = None,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    chunk_size: int = 64,
    backend: str = "auto",
    overwrite_state: bool = False,
) -> tuple[Tensor, Tensor]:
    """Linear attention with decay: ``S_t = diag(e^{g_t}) S_{t-1} + k_t v_t^T``, ``o_t = S_t^T (scale q_t)``.

    One decay per head is RetNet (2307.08621), Lightning and Mamba-2 (2405.21060); one per key channel is GLA
    (2312.06635, section 4) and HGRN2; none is plain linear attention.

    Args:
        q: queries ``(B, T, H, K)``.
        k: keys ``(B, T, H, K)``.
        v: values ``(B, T, HV, V)``, ``HV`` a multiple of ``H``: value head ``j`` reads key head ``j // (HV // H)``.
        log_decay: None, ``(HV,)``, ``(B, T, HV)`` or ``(B, T, HV, K)``, ``<= 0``.
        scale: factor on ``q``; None for ``K ** -0.5``.
        state: ``S`` before the first token ``(B, HV, K, V)``, or ``(N, HV, K, V)`` with ``cu_seqlens``; None for zeros.
        cu_seqlens: ``(N + 1,)`` int64 borders of the N documents packed into the single row (``B == 1``).
        chunk_size: tokens treated at once by chunkwise backends (an upper bound); the result does not depend on it.
        backend: ``auto``, ``reference``, ``torch``, ``native`` or ``fla``.
        overwrite_state: allow the new state into the memory of ``state``, which is lost then. For callers who alone
            hold ``state`` and drop it: a token's step is quicker so. It may be ignored; without it the returned state
            is always new.

    Returns:
        Output ``(B, T, HV, V)`` in ``v``'s dtype, and the state after the last token of each row or document.

    Raises:
        OptionError: arguments that do not fit (the message names which), or an unknown backend.
        BackendUnavailable: the backend cannot serve here, or a second derivative was asked of it.
    """
    return _attend(
        "linear_attention", q, k, v, None, log_decay, scale, state, cu_seqlens, chunk_size, backend, overwrite_state
    )


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    *,
    scale: float | None = None,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    chunk_size: int = 64,
    backend: str = "auto",
    overwrite_state: bool = False,
) -> tuple[Tensor, Tensor]:
    """Delta rule: ``S~ = diag(e^{g_t}) S_{t-1}``, ``S_t = S~ + beta_t k_t (v_t - S~^T k_t)^T``.

    The read ``o_t = S_t^T (scale q_t)`` comes after the write. Without decay this is DeltaNet (2406.06484), with one
    per head Gated DeltaNet (2412.06464, equation 10), with one per key channel Kimi Delta Attention (2510.26692).
    Keys are used as they are: the mixers normalise them.

    Args:
        q: queries ``(B, T, H, K)``.
        k: keys ``(B, T, H, K)``.
        v: values ``(B, T, HV, V)``, ``HV`` a multiple of ``H``: value head ``j`` reads key head ``j // (HV // H)``.
        beta: writing strength ``(B, T, HV)``, in ``[0, 2]`` for keys of length one.
        log_decay: None, ``(HV,)``, ``(B, T, HV)`` or ``(B, T, HV, K)``, ``<= 0``.
        scale: factor on ``q``; None for ``K ** -0.5``.
        state: ``S`` before the first token ``(B, HV, K, V)``, or ``(N, HV, K, V)`` with ``cu_seqlens``; None for zeros.
        cu_seqlens: ``(N + 1,)`` int64 borders of the N documents packed into the single row (``B == 1``).
        chunk_size: tokens treated at once by chunkwise backends (an upper bound); the result does not depend on it.
        backend: ``auto``, ``reference``, ``torch``, ``native`` or ``fla``.
        overwrite_state: allow the new state into the memory of ``state``, which is lost then. For callers who alone
            hold ``state`` and drop it: a token's step is quicker so. It may be ignored; without it the returned state
            is always new.

    Returns:
        Output ``(B, T, HV, V)`` in ``v``'s dtype, and the state after the last token of each row or document.

    Raises:
        OptionError: arguments that do not fit (the message names which), or an unknown backend.
        BackendUnavailable: the backend cannot serve here, or a second derivative was asked of it.
    """
    return _attend(
        "delta_rule", q, k, v, beta, log_decay, scale, state, cu_seqlens, chunk_size, backend, overwrite_state
    )


def _attend(
    name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    log_decay: Tensor | None,
    scale: float | None,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    chunk_size: int,
    backend: str,
    overwrite_state: bool,
) -> tuple[Tensor, Tensor]:
    scale, cu_seqlens, chunk_size, some = checks.attention(
        name, q, k, v, beta, log_decay, scale, state, cu_seqlens, chunk_size
    )
    chosen = _backend(backend, q.shape[3], some, v, q, k, beta, log_decay, state)
    if chosen == "fla":
        from plait.ops import fla

        chosen = _unless(fla.refuses_gradient(q, k, v, beta, log_decay, state), chosen, backend)
    if chosen == "fla":
        return fla.attend(q, k, v, beta, log_decay, scale, state, cu_seqlens)
    if chosen == "native":
        return native.attend(q, k, v, beta, log_decay, scale, state, cu_seqlens, chunk_size, overwrite_state)
    implementation = reference if chosen == "reference" else chunkwise
    dtype = _compute_dtype(q, k, v)
    with _no_autocast(v):
        o, last = implementation.attend(
            q.to(dtype) * scale,
            k.to(dtype),
            v.to(dtype),
            _cast(beta, dtype),
            _cast(log_decay, dtype),
            _cast(state, dtype),
            cu_seqlens,
            chunk_size,
        )
    return o.to(v.dtype), last


def _backend(name: str, key_width: int, some: bool, first: Tensor, *others: Tensor | None) -> str:
    """The backend for this call; where the one that ``auto`` chose cannot take the tensors, torch runs.

    Where nothing is to be computed (``some`` False) that is the reference: it has no blocks to cut.
    """
    chosen = dispatch.resolve(name, "cpu" if first.is_cpu else first.device.type)
    if not some or chosen == "reference":
        return "reference"
    transform = native.transform()
    if transform is not None:
        raise BackendUnavailable(
            f"Backend {chosen!r} cannot serve: it knows no {transform}. Fix: ask for backend 'reference'."
        )
    if chosen == "native":
        reason = native.refuses(first, *others)
    elif chosen == "fla":
        from plait.ops import fla

        reason = fla.refuses(first, key_width)
    else:
        return chosen
    return _unless(reason, chosen, name)


def _unless(reason: str | None, chosen: str, name: str) -> str:
    """``chosen`` where nothing speaks against it; ``torch`` where something does and the user left the choice."""
    if reason is None:
        return chosen
    if name == "auto" and not dispatch.overridden():
        return "torch"
    raise BackendUnavailable(f"Backend {chosen!r} cannot serve: {reason}. Fix: ask for backend 'torch' or 'auto'.")


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def _cast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype)


def _no_autocast(x: Tensor) -> AbstractContextManager[object]:
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()

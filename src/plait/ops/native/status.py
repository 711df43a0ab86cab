"""Whether the compiled kernels can serve."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from plait.ops.native.kernel import tracing
from plait.ops.native.library import load

_TOO_WIDE = torch.float64
_PLAIN = frozenset({Tensor, nn.Parameter, nn.Buffer})


def absent() -> str | None:
    """Why there are no kernels here, or None when there are."""
    library, reason = load()
    return reason if library is None else None


def transform() -> str | None:
    """What of PyTorch is at work that asks more of an operation than its values and its first derivative."""
    if torch.compiler.is_compiling():
        return None
    if torch._C._functorch.maybe_current_level() is not None:
        return "transforms of torch.func"
    if forward_ad._current_level >= 0:
        return "forward-mode derivatives"
    return None


def refuses(*tensors: Tensor | None) -> str | None:
    """Why the kernels cannot take these tensors, or None. They read memory: only plain tensors have theirs at hand."""
    traced = tracing()
    if not traced:
        if torch._C._is_tracing():
            return "torch.jit.trace does not see into its kernels"
        reason = transform()
        if reason is not None:
            return f"its kernels know no {reason}"
    for x in tensors:
        if x is None:
            continue
        if not x.is_cpu:
            return f"its kernels need CPU tensors and the tensors are on {x.device.type}"
        if x.dtype is _TOO_WIDE:
            return "its kernels compute in fp32 and the tensors are fp64"
        if not (traced or type(x) in _PLAIN or _keeps_memory(type(x))):
            return f"its kernels read memory, which a {type(x).__name__} does not show"
    return None


def _keeps_memory(kind: type[Tensor]) -> bool:
    """Whether a subclass leaves PyTorch's dispatch alone, so that its data lie where a tensor's do."""
    return kind.__torch_dispatch__ is Tensor.__torch_dispatch__  # type: ignore[attr-defined]

"""Whether the compiled kernels can serve."""

from __future__ import annotations

import torch
from torch import Tensor

from plait.ops.native.library import load

_TOO_WIDE = torch.float64


def absent() -> str | None:
    """Why there are no kernels here, or None when there are."""
    library, reason = load()
    return reason if library is None else None


def refuses(*tensors: Tensor | None) -> str | None:
    """Why the kernels cannot take these tensors, or None."""
    for x in tensors:
        if x is None or (x.is_cpu and x.dtype is not _TOO_WIDE):
            continue
        if not x.is_cpu:
            return f"its kernels need CPU tensors and the tensors are on {x.device.type}"
        return "its kernels compute in fp32 and the tensors are fp64"
    return None

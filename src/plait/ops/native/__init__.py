"""The ``native`` backend: the recurrences as compiled kernels for CPU tensors of fp32, bf16 and fp16; fp32 inside.

Optional: installing plait compiles it where there is a C compiler (:mod:`plait.ops.native.build`). Each kernel is an
operator of :mod:`torch.library` with shapes for tracing and its own backward, so ``torch.compile`` and ``torch.export``
keep it as one node. Kept for backward: the inputs and one state per chunk; all else is computed again.
"""

from __future__ import annotations

from plait.ops.native.attention import attend
from plait.ops.native.kernel import tracing
from plait.ops.native.library import FIX, load
from plait.ops.native.rows import depthwise, linear_scan
from plait.ops.native.status import absent, refuses, transform

__all__ = ["FIX", "absent", "attend", "depthwise", "linear_scan", "load", "refuses", "tracing", "transform"]

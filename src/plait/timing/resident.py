"""Memory that a call takes and memory that calls leave behind, as the system or the GPU's allocator counts it.

On a CPU torch keeps no account, so the process's resident memory is read: ``VmRSS`` now and ``VmHWM`` at its highest,
from ``/proc/self/status`` (Linux; the kernel counts pages of 4 KiB once they are touched). Other systems only know the
highest value, through :mod:`resource`.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def peak_extra_bytes(call: Callable[[], object], device: str = "cpu") -> int:
    """Bytes held at the highest point of one call, beyond what was held before it.

    On a CPU call it once in a fresh process: memory that was freed before, but kept by the allocator, is not seen.

    Args:
        call: its result is alive at the end and counts.
        device: ``cpu`` or ``cuda``.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        _return_freed_memory()
        _forget_peak()
        before = resident_bytes()
    result = call()
    if device == "cuda":
        torch.cuda.synchronize()
    after = torch.cuda.max_memory_allocated() if device == "cuda" else _peak_bytes()
    del result
    return after - before


def grown_bytes(call: Callable[[], object], calls: int, device: str = "cpu") -> int:
    """Bytes held after many calls beyond those held before, once a tenth as many have warmed up.

    Args:
        call: its results are dropped.
        calls: how many are counted.
        device: ``cpu`` or ``cuda``.
    """
    for _ in range(calls // 10 + 1):
        call()
    before = _held_bytes(device)
    for _ in range(calls):
        call()
    return _held_bytes(device) - before


def resident_bytes() -> int:
    """Memory of this process that is in RAM now; where the system does not say, the most that ever was."""
    return _status("VmRSS") if _STATUS.exists() else _peak_bytes()


def _held_bytes(device: str) -> int:
    gc.collect()
    return torch.cuda.memory_allocated() if device == "cuda" else resident_bytes()


def _peak_bytes() -> int:
    if _STATUS.exists():
        return _status("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(key: str) -> int:
    line = next(line for line in _STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024  # "VmRSS:   123 kB"


def _forget_peak() -> None:
    """Set ``VmHWM`` back to ``VmRSS``, where the kernel lets a process do so."""
    with suppress(OSError):
        _CLEAR.write_text("5", encoding="utf-8")


def _return_freed_memory() -> None:
    """Let glibc give back what was freed, so that it is counted when it is taken again."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

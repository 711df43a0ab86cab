"""The compiled kernels: which file is loaded, or why none is, and their arguments as C sees them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import Structure, c_float, c_int64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

FIX = "install a C compiler and run python -m plait.ops.native.build"
TYPES = {torch.float32: 0, torch.bfloat16: 1}


class Rows(Structure):
    """A tensor ``(B, T, H[, D])`` by its outer strides, in elements; its channels are contiguous."""

    _fields_ = [("data", c_void_p), ("batch", c_int64), ("token", c_int64), ("head", c_int64), ("type", c_int64)]

    @classmethod
    def of(cls, x: Tensor | None) -> Rows:
        if x is None:
            return cls()
        strides = x.stride()
        return cls(x.data_ptr(), strides[0], strides[1], strides[2], TYPES[x.dtype])


def _fields(*groups: tuple[str, Any]) -> list[tuple[str, Any]]:
    return [(name, kind) for names, kind in groups for name in names.split()]


class Attention(Structure):
    """Arguments of the chunkwise recurrences, as ``attention.h`` declares them."""

    _fields_ = _fields(
        ("q k v beta log_decay o", Rows),
        ("state last saved", c_void_p),
        ("d_o d_q d_k d_v d_beta d_log_decay", Rows),
        ("d_last d_state row first length chunk", c_void_p),
        ("sequences heads group K V size per_channel", c_int64),
        ("scale", c_float),
    )


class Scan(Structure):
    """Arguments of the first-order scan (``rows.c``)."""

    _fields_ = _fields(
        ("log_a u state h d_h d_log_a d_u d_state start length", c_void_p), ("sequences D width", c_int64)
    )


class Convolution(Structure):
    """Arguments of the depthwise convolution (``rows.c``)."""

    _fields_ = _fields(("x weight bias y d_y d_x d_weight", c_void_p), ("B T C taps", c_int64))


class Softmax(Structure):
    """Arguments of softmax attention over chosen keys (``softmax.c``)."""

    _fields_ = _fields(
        ("q k v o sums lse d_o rest d_q d_k d_v index begin end starts stored firsts", c_void_p),
        ("q_batch q_head q_token k_batch k_head k_token v_batch v_head v_token", c_int64),
        ("B H X G T S D DV block page first window sinks parts", c_int64),
        ("scale", c_float),
    )


@cache
def load() -> tuple[ctypes.CDLL | None, str]:
    """The library for this processor and what it was compiled for; or None and the reason."""
    from plait.ops.native import build  # not above: that module is also run as a program, which must find it new

    best = torch.backends.cpu.get_cpu_capability().upper()
    fitting = build.levels()
    if best in fitting:
        fitting = fitting[fitting.index(best) :]
    elif len(fitting) > 1:
        fitting = fitting[-1:]
    for level in fitting:
        path = build.library(level)
        if path.exists():
            return ctypes.CDLL(str(path)), level
    if any(build.compiled().glob("kernels-*.so")):
        return None, "its kernels were compiled from other sources than those here, or for another processor"
    return None, "its kernels were not compiled when plait was installed"


def call(name: str, arguments: Structure | bytes) -> None:
    """Run a kernel with PyTorch's number of threads; other Python threads run meanwhile.

    Args:
        name: of the kernel.
        arguments: its structure, or the bytes of one.

    Raises:
        MemoryError: no room for a thread's scratch.
    """
    library, reason = load()
    assert library is not None, reason
    where = arguments if isinstance(arguments, bytes) else ctypes.byref(arguments)
    if getattr(library, "plait_" + name)(where, torch.get_num_threads(), _team()):
        raise MemoryError(f"plait's kernel {name} found no memory for its scratch.")


def pointer(x: Tensor | None) -> int | None:
    """Address of a contiguous tensor; None stays."""
    return None if x is None else x.data_ptr()


def integers(values: Sequence[int]) -> ctypes.Array[c_int64]:
    """A C array; whoever passes its address keeps it alive."""
    return (c_int64 * len(values))(*values)


def address(array: ctypes.Array[c_int64]) -> int:
    """Where a C array lies."""
    return ctypes.addressof(array)


@cache
def _openmp() -> c_void_p:
    """``GOMP_parallel`` of the OpenMP runtime that PyTorch has loaded; null where it is not to be found."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, c_void_p)
    except (AttributeError, OSError):
        return c_void_p()


def _team() -> c_void_p | None:
    """The threads to share; none after a fork, where that runtime would wait for threads that no longer exist."""
    return None if _forked else _openmp()


def _note_fork() -> None:
    global _forked
    _forked = True


_forked = False
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_note_fork)

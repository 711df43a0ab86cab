"""Which implementation of a recurrence runs: chosen by device at call time, or by name.

``choose`` says which and why, ``backends`` lists all with the reason when one cannot serve, and
``backend(name)`` is a context manager that overrides the choice.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from plait.errors import BackendUnavailable, OptionError, nearest
from plait.extras import install_command
from plait.ops import native

NAMES = ("reference", "torch", "native", "fla")


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can serve on this machine.

    Args:
        name: ``reference``, ``torch``, ``native`` or ``fla``.
        available: True when it can be asked for.
        reason: why it can or cannot serve.
        fix: what to do to make it available; empty when it is.
    """

    name: str
    available: bool
    reason: str
    fix: str = ""


F = TypeVar("F", bound=Callable[..., object])
_override: ContextVar[str | None] = ContextVar("plait_ops_backend", default=None)


def _fla_status() -> BackendStatus:
    if not torch.cuda.is_available():
        return BackendStatus(
            "fla",
            False,
            "its Triton kernels need a CUDA device and torch sees none",
            "run on a machine with a CUDA GPU",
        )
    if importlib.util.find_spec("fla") is None:
        return BackendStatus("fla", False, "flash-linear-attention is not installed", install_command("gpu"))
    return BackendStatus("fla", True, "Triton kernels of flash-linear-attention, for CUDA tensors")


def _native_status() -> BackendStatus:
    reason = native.absent()
    if reason is not None:
        return BackendStatus("native", False, reason, native.FIX)
    return BackendStatus("native", True, f"compiled kernels for CPU tensors ({native.load()[1]})")


def status(name: str) -> BackendStatus:
    """Whether the backend of this name can serve, and why.

    Raises:
        OptionError: there is no backend of this name.
    """
    if name == "reference":
        return BackendStatus("reference", True, "a loop over time steps: slow, exact, the oracle of the others")
    if name == "torch":
        return BackendStatus("torch", True, "chunkwise matrix products in PyTorch, any device")
    if name == "native":
        return _native_status()
    if name == "fla":
        return _fla_status()
    raise OptionError(f"There is no backend named {name!r}.{nearest(name, [*NAMES, 'auto'])}")


def backends() -> list[BackendStatus]:
    """All backends, available or not."""
    return [status(name) for name in NAMES]


def choose(device_type: str) -> tuple[str, str]:
    """The backend that ``"auto"`` takes for tensors on this kind of device, and why.

    Args:
        device_type: ``tensor.device.type``, such as ``"cpu"`` or ``"cuda"``.
    """
    name = _override.get()
    if name is not None:
        return name, f"plait.ops.backend({name!r}) is active"
    if device_type == "cuda":
        fla = _fla_status()
        if fla.available:
            return "fla", f"{device_type} tensors: {fla.reason}"
        return "torch", f"{device_type} tensors, and fla cannot serve: {fla.reason}"
    if device_type == "cpu":
        kernels = _native_status()
        if kernels.available:
            return "native", f"{device_type} tensors in fp32 or bf16: {kernels.reason}"
        return "torch", f"{device_type} tensors, and native cannot serve: {kernels.reason}"
    return "torch", f"{device_type} tensors: {status('torch').reason}"


def constant_when_compiled(function: F) -> F:
    """As ``torch.compiler.assume_constant_result``, without importing the compiler: a graph keeps the first answer."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_compiled
def resolve(name: str, device_type: str) -> str:
    """The backend to run: ``name`` itself, or the choice for the device when it is ``"auto"``.

    Raises:
        OptionError: there is no backend of this name.
        BackendUnavailable: it cannot serve here; the message says why and how to fix it.
    """
    if name == "auto":
        if device_type == "cpu" and _override.get() is None:  # the common case, without words: it runs for each token
            return "torch" if native.absent() else "native"
        return choose(device_type)[0]
    found = status(name)
    if not found.available:
        raise BackendUnavailable(f"Backend {name!r} cannot serve: {found.reason}. To fix it: {found.fix}.")
    return name


def fused_kernels(x: Tensor) -> bool:
    """Whether fla's kernels for what stands around a recurrence (convolution, norms) serve this tensor.

    Not inside a compiled graph, whose compiler joins PyTorch's own operations.
    """
    return (
        x.is_cuda
        and x.dtype != torch.float64
        and not torch.compiler.is_compiling()
        and resolve("auto", "cuda") == "fla"
    )


@constant_when_compiled
def overridden() -> bool:
    """Whether a ``with backend(name)`` block is active."""
    return _override.get() is not None


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run every recurrence inside the ``with`` block on one backend (``"auto"`` restores the choice by device).

    Raises:
        OptionError: there is no backend of this name.
        BackendUnavailable: it cannot serve here.
    """
    chosen = None if name == "auto" else resolve(name, "cpu")
    token = _override.set(chosen)
    try:
        yield
    finally:
        _override.reset(token)

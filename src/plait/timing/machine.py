"""What the machine can do at best, as the ceiling beside every timing."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from plait import ops
from plait.errors import BackendUnavailable
from plait.provenance import provenance
from plait.timing.ratios import Contender, take_turns


@dataclass(frozen=True)
class Ceiling:
    """Something that the machine does as fast as it can.

    Args:
        name: what it is, with the unit of its rate.
        amount: what one call does, in 1e9 of that unit's numerator: operations, or bytes.
        call: does it once.
    """

    name: str
    amount: float
    call: Contender


def matrix_product(device: str, dtype: torch.dtype, size: int | None = None) -> Ceiling:
    """The product of two square matrices; a multiply and an add count 2 operations.

    Args:
        device: ``cpu`` or ``cuda``.
        dtype: of the matrices.
        size: rows; None for 1024 on a CPU and 8192 on a GPU, which need that much to be busy.
    """
    size = size or _size(device)
    generator = torch.Generator(device).manual_seed(0)
    matrix = torch.randn(size, size, generator=generator, device=device).to(dtype)
    return Ceiling("matmul GFLOP/s", 2 * size**3 / 1e9, partial(torch.mm, matrix, matrix))


def copy(device: str, dtype: torch.dtype, size: int | None = None) -> Ceiling:
    """A copy of 16 square matrices, too large for the caches; bytes read and bytes written both count.

    Args:
        device: ``cpu`` or ``cuda``.
        dtype: of the matrices.
        size: rows of one matrix; None as in :func:`matrix_product`.
    """
    size = size or _size(device)
    source = torch.zeros(16, size, size, dtype=dtype, device=device)
    return Ceiling("copy GB/s", 2 * source.nbytes / 1e9, partial(torch.empty_like(source).copy_, source))


def ceilings(device: str = "cpu", dtype: torch.dtype = torch.float32, size: int | None = None) -> dict[str, float]:
    """Rates of :func:`matrix_product` and :func:`copy`, medians of seven alternated samples.

    Returns:
        ``matmul GFLOP/s`` and ``copy GB/s``.
    """
    bounds = [matrix_product(device, dtype, size), copy(device, dtype, size)]
    seconds = take_turns({ceiling.name: ceiling.call for ceiling in bounds}, device=device)
    return {ceiling.name: ceiling.amount / statistics.median(seconds[ceiling.name]) for ceiling in bounds}


def timed_dtype(device: str) -> torch.dtype:
    """What operations are timed in: fp32 on a CPU, bf16 on a GPU."""
    return torch.float32 if device == "cpu" else torch.bfloat16


def description(device: str) -> dict[str, Any]:
    """What stands above every table: machine, device, dtype, threads, versions, and plait's backend with its reason."""
    backend, reason = ops.choose(device)
    return {
        **provenance(),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "dtype": str(timed_dtype(device)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "backend": backend,
        "backend_reason": reason,
    }


def require_device(device: str) -> None:
    """Check that torch can run on ``device``.

    Raises:
        BackendUnavailable: it cannot; the message says what to do.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(
            f"torch {torch.__version__} sees no CUDA device. Run the command with --device cpu, "
            "or install a torch built for CUDA on a machine that has a GPU."
        )


def _size(device: str) -> int:
    return 1024 if device == "cpu" else 8192

"""What the machine can do at best, as the ceiling beside every timing."""

from __future__ import annotations

import statistics

import torch

from plait.benchmarks.timing import take_turns


def ceilings(device: str = "cpu", dtype: torch.dtype = torch.float32, size: int = 1024) -> dict[str, float]:
    """Rates of a square matrix product and of a copy, medians of seven samples.

    Args:
        device: ``cpu`` or ``cuda``.
        dtype: of the matrices.
        size: rows of the matrices; the copy moves 16 such matrices, to leave the caches.

    Returns:
        ``matmul GFLOP/s`` (a multiply and an add count 2) and ``copy GB/s`` (bytes read plus bytes written).
    """
    generator = torch.Generator(device).manual_seed(0)
    matrix = torch.randn(size, size, generator=generator, device=device).to(dtype)
    source = torch.zeros(16, size, size, dtype=dtype, device=device)
    target = torch.zeros_like(source)
    seconds = take_turns({"matmul": lambda: matrix @ matrix, "copy": lambda: target.copy_(source)}, device=device)
    return {
        "matmul GFLOP/s": 2 * size**3 / statistics.median(seconds["matmul"]) / 1e9,
        "copy GB/s": 2 * source.nbytes / statistics.median(seconds["copy"]) / 1e9,
    }

"""On CUDA every backend agrees with the recurrence in fp64: outputs, final states, gradients of all arguments.

The error of a tensor is the norm of the difference over its norm. Inputs are the same numbers in every precision, so
what is measured is the arithmetic. One operation is one group of xdist: its reference and its kernels are made once.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gpu.cases import BORDERS, DEVICE, LENGTHS, OPERATIONS, error, reference
from plait import ops
from plait.nn import rotary_table, rotate
from plait.ops import norm

pytestmark = pytest.mark.gpu

#: (backend, dtype) -> largest error of outputs and states, and of gradients.
#: torch computes in fp32 without TF32: rounding 2^-24, grown by sums over chunks and by cancellation in gradients; in
#: bf16 only what it returns is rounded, by up to 2^-9. fla multiplies fp32 in TF32, which rounds by up to 2^-11; in
#: bf16 it also rounds scores, decayed keys and states between its kernels, by up to 2^-9 each, and a few add up.
TOLERANCES = {
    ("torch", torch.float32): (1e-5, 1e-4),
    ("torch", torch.bfloat16): (4e-3, 4e-3),
    ("fla", torch.float32): (5e-3, 1e-2),
    ("fla", torch.bfloat16): (1e-2, 3e-2),
}
#: An operation is one group: the scheduler keeps it on one worker.
GROUPED = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in OPERATIONS]


@pytest.mark.parametrize("operation", GROUPED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("backend", ["torch", "fla"])
@pytest.mark.parametrize(("length", "packed"), [*((T, False) for T in LENGTHS), (BORDERS[-1], True)])
def test_parity_with_fp64(
    operation: str,
    backend: str,
    dtype: torch.dtype,
    length: int,
    packed: bool,
    record_property: Callable[[str, object], None],
) -> None:
    status = next(one for one in ops.backends() if one.name == backend)
    if not status.available:
        pytest.skip(f"{backend}: {status.reason}")
    found = OPERATIONS[operation]
    expected = reference(operation, length, packed)
    got = found.results(found.in_dtype(found.arguments(length, packed), dtype), packed, backend)
    assert got["output"].dtype == dtype
    assert got["final state"].dtype == torch.float32
    errors = {name: error(got[name], value) for name, value in expected.items()}
    for name, size in errors.items():
        record_property(name, f"{size:.1e}")
    forward, backward = TOLERANCES[backend, dtype]
    wrong = {name: e for name, e in errors.items() if not e <= (backward if "gradient" in name else forward)}
    assert not wrong, errors


def taps(x: Tensor, weight: Tensor, tail: Tensor) -> Tensor:
    """One document: the convolution written as a sum over its taps."""
    extended = torch.cat([tail, x], dim=1)
    count = weight.shape[1]
    return sum(weight[:, j] * extended[:, j : j + x.shape[1]] for j in range(count))


@pytest.mark.xdist_group("convolution")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 6e-3)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_short_convolution(backend: str, dtype: torch.dtype, tolerance: float, packed: bool) -> None:
    """Summed in fp32 in both types, without TF32 since a depthwise kernel has no tensor cores to use."""
    generator = torch.Generator().manual_seed(0)
    length, channels, rows = BORDERS[-1], 96, 1 if packed else 3
    documents = len(BORDERS) - 1 if packed else rows
    shapes = {"x": (rows, length, channels), "weight": (channels, 4), "tail": (documents, 3, channels)}
    made = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    cotangent = torch.randn(rows, length, channels, generator=generator).to(dtype)

    exact = {name: x.double().requires_grad_() for name, x in made.items()}
    if packed:
        pieces = exact["x"].split(torch.tensor(BORDERS).diff().tolist(), dim=1)
        tails = exact["tail"].split(1)
        y = torch.cat([taps(x, exact["weight"], tail) for x, tail in zip(pieces, tails, strict=True)], dim=1)
    else:
        y = taps(exact["x"], exact["weight"], exact["tail"])
    y = torch.nn.functional.silu(y)
    expected = [y, *torch.autograd.grad(y, list(exact.values()), cotangent.double())]

    leaves = {name: x.to(DEVICE).requires_grad_() for name, x in made.items()}
    borders = torch.tensor(BORDERS, device=DEVICE) if packed else None
    with ops.backend(backend):
        found, last = ops.causal_convolution(**leaves, cu_seqlens=borders, silu=True)
    with ops.backend("torch"):
        assert torch.equal(last, ops.causal_convolution(**leaves, cu_seqlens=borders)[1])
    assert found.dtype == dtype
    got = [found, *torch.autograd.grad(found, list(leaves.values()), cotangent.to(DEVICE))]
    errors = [error(a, b) for a, b in zip(got, expected, strict=True)]
    assert all(e <= tolerance for e in errors), errors


#: Functions of whole tensors that have a kernel of fla's on CUDA: the shapes of their arguments, and the call.
ROW = (2, 333, 3, 96)
TABLE = rotary_table(torch.arange(333).expand(2, -1), 96)
AROUND: dict[str, tuple[list[tuple[int, ...]], Callable[..., Tensor]]] = {
    "l2_norm": ([ROW], lambda x: norm.l2_norm(x, 1e-3)),
    "rms_norm": ([ROW, (96,)], lambda x, weight: norm.rms_norm(x, weight, 1e-3)),
    "silu_norm": ([ROW, ROW, (96,)], lambda x, gate, weight: norm.gated_rms_norm(x, gate, weight, 1e-3)),
    "sigmoid_norm": ([ROW, ROW, (96,)], lambda x, gate, weight: norm.gated_rms_norm(x, gate, weight, 1e-3, "sigmoid")),
    "rotate": ([ROW], lambda x: rotate(x, *(part.to(x.device, norm.widen(x).dtype) for part in TABLE))),
}


@pytest.mark.xdist_group("around")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 6e-3)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", AROUND)
def test_norms_and_rotations(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """Output and all gradients against PyTorch's own operations in fp64."""
    shapes, function = AROUND[name]
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    cotangent = torch.randn(ROW, generator=generator).to(dtype)
    exact = [x.double().requires_grad_() for x in made]
    y = function(*exact)
    expected = [y, *torch.autograd.grad(y, exact, cotangent.double())]
    leaves = [x.to(DEVICE).requires_grad_() for x in made]
    found = function(*leaves)
    assert found.dtype == dtype
    got = [found, *torch.autograd.grad(found, leaves, cotangent.to(DEVICE))]
    errors = [error(a, b) for a, b in zip(got, expected, strict=True)]
    assert all(e <= tolerance for e in errors), errors

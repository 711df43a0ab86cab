"""Every mixer on CUDA, in fp32 and under bf16 autocast, against the same mixer on a CPU in fp64, token by token."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from gpu.cases import DEVICE, error
from mixers.layers import make, shared
from plait import catalog, ops
from plait.mixers import Context, Mixer

pytestmark = pytest.mark.gpu

HIDDEN, LENGTH = 128, 333
#: Heads of 64 channels everywhere, so that a kernel is compiled once.
OPTIONS: dict[str, dict[str, Any]] = {
    "retnet": {"num_heads": 2, "expand_v": 1.0},
    "hgrn2": {"num_heads": 2},
    "gla": {"num_heads": 2, "expand_k": 1.0, "use_short_conv": True},
    "deltanet": {"num_heads": 2},
    "gated_deltanet": {"num_heads": 2},
    "kda": {"num_heads": 2},
    "attention": {"num_heads": 2},
}
#: dtype -> largest error of the output and of all gradients together. fla multiplies fp32 in TF32 (2^-11);
#: bf16 rounds some thirty values on the way, by up to 2^-9 each. A single parameter may lie LOOSER times further off:
#: gradients of gates are small differences.
TOLERANCES = {torch.float32: 5e-3, torch.bfloat16: 6e-2}
LOOSER = 5


def layer(name: str) -> Mixer:
    """In fp64 on the CPU, with values that fp32 holds; matrices scaled so that gates are not saturated."""
    mixer = make(name, hidden=HIDDEN, **OPTIONS.get(name, {}))
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.mul_(0.4 if parameter.dim() == 2 else 1).copy_(parameter.float())
    return mixer


def results(mixer: Mixer, x: Tensor) -> dict[str, Tensor]:
    """Output, and gradients of the input and of all parameters for a fixed cotangent."""
    x = x.requires_grad_()
    held = {name: value.to(x) for name, value in shared(mixer.cpu()).items()}
    mixer.to(x.device)
    y = mixer(x, Context.plain(x, parameters=held))
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    names, parameters = zip(*mixer.named_parameters(), strict=True)
    gradients = torch.autograd.grad(y, [x, *parameters], cotangent.to(y))
    return {"output": y.detach()} | dict(zip(["x", *names], gradients, strict=True))


@cache
def exact(name: str) -> dict[str, Tensor]:
    with ops.backend("reference"):
        return results(layer(name), batch())


def batch() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, LENGTH, HIDDEN, generator=generator).double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in catalog.names("mixer")]
)
def test_parity_with_fp64(name: str, dtype: torch.dtype) -> None:
    expected = exact(name)
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = results(layer(name).float(), batch().float().to(DEVICE))
    assert found["output"].dtype == dtype
    assert all(found[key].dtype == torch.float32 for key in found if key != "output")
    tolerance = TOLERANCES[dtype]
    assert error(found.pop("output"), expected["output"]) <= tolerance
    whole = torch.cat([found[key].flatten().cpu() for key in found])
    assert error(whole, torch.cat([expected[key].flatten() for key in found])) <= tolerance
    largest = max(float(expected[key].norm()) for key in found)
    for key, gradient in found.items():
        distance = float((gradient.double().cpu() - expected[key]).norm())
        # a gradient that is nearly zero beside the others has no digits of its own
        assert distance <= LOOSER * tolerance * max(float(expected[key].norm()), 1e-2 * largest), key

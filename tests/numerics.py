"""How equal two results must be: weights bit by bit, outputs up to rounding.

A matrix product may give other last bits when its operands lie elsewhere in memory, as loaded weights do: a file puts
them at steps of 8 or 16 bytes, PyTorch's allocator at steps of 64. Only what reads the same memory twice, or memory
that PyTorch allocated both times, may be compared with ``torch.equal``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

#: Largest difference between two outputs, relative to the largest expected number.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def assert_same_outputs(found: Tensor, expected: Tensor) -> None:
    """Outputs of equal weights: equal up to the rounding of their type."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    scale = expected.detach().abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[expected.dtype] * scale)


def assert_same_weights(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Weights of the same names, equal bit by bit."""
    assert found.keys() == expected.keys()
    different = [name for name, value in expected.items() if not torch.equal(found[name], value)]
    assert not different


def shifted(x: Tensor) -> Tensor:
    """A copy that begins 16 bytes behind a multiple of 64, in a storage of its own."""
    size = x.numel() * x.element_size()
    room = np.empty(size + 80, np.uint8)
    start = -room.ctypes.data % 64 + 16
    return torch.from_numpy(room[start : start + size]).view(x.dtype).view(x.shape).copy_(x)


@contextmanager
def shifted_memory() -> Iterator[None]:
    """Loaded weights lie at other addresses, and products with them round otherwise, as on some processors.

    Weights that ``from_pretrained`` gives begin 16 bytes off; :func:`torch.nn.functional.linear` with such a weight
    differs by one unit in the last place of fp32 or fp64.
    """
    load, linear = PreTrainedModel.from_pretrained.__func__, F.linear  # type: ignore[attr-defined]

    def load_shifted(kind: type[PreTrainedModel], *args: Any, **options: Any) -> Any:
        result = load(kind, *args, **options)
        model: nn.Module = result[0] if isinstance(result, tuple) else result
        for parameter in model.parameters():
            own = hasattr(parameter, "__tensor_flatten__")  # quantised: other memory than its shape says
            dense = parameter.device.type == "cpu" and not own and parameter.is_contiguous()
            if dense and parameter.is_floating_point():
                parameter.data = shifted(parameter.data)
        return result

    def linear_shifted(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        product = linear(x, weight, bias)
        if torch.compiler.is_compiling() or not _off_step(weight):
            return product
        return product * (1 + torch.finfo(product.dtype).eps)

    PreTrainedModel.from_pretrained = classmethod(load_shifted)  # type: ignore[method-assign]
    F.linear: Callable[..., Tensor] = linear_shifted  # type: ignore[misc]
    try:
        yield
    finally:
        PreTrainedModel.from_pretrained = classmethod(load)  # type: ignore[method-assign]
        F.linear = linear


def _off_step(weight: Tensor) -> bool:
    """Whether these are whole weights on the CPU, in at least fp32, that begin off a multiple of 64 bytes."""
    whole = type(weight) is nn.Parameter and weight.device.type == "cpu" and weight.element_size() > 2
    return whole and weight.data_ptr() % 64 != 0

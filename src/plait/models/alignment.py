"""Weights at the addresses at which torch itself allocates.

Files hold tensors one behind the other, and what is read from a mapped file lies at any multiple of 8 bytes. Some
processors' matrix products then take other instructions and give other last bits. A run that is gone on with must
compute what it would have computed without the break, so everything that is loaded for it is copied to where a tensor
made in memory would lie.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Bytes to which torch aligns what it allocates on a CPU.
ALIGNMENT = 64


def aligned(value: Tensor) -> Tensor:
    """The tensor itself, or a copy at an aligned address; devices other than the CPU align by themselves."""
    return value if value.device.type != "cpu" or value.data_ptr() % ALIGNMENT == 0 else value.clone()


def align_weights(model: nn.Module) -> None:
    """Move every parameter and buffer of a model to an aligned address, in place; tied ones stay tied."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if not tensor.is_meta and tensor.layout is torch.strided:
                tensor.data = aligned(tensor.data)

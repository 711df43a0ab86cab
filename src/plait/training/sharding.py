"""One model on many devices: FSDP2, its checkpoints, and their way into models that are placed differently.

A checkpoint of torch.distributed.checkpoint holds each tensor whole, in pieces that the processes wrote; a model on any
number of processes, sharded or not, takes from it what it needs.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.utils import SAFE_WEIGHTS_NAME

from plait.errors import TrainingError
from plait.models.alignment import aligned
from plait.models.loading import SHARDED_FOLDER
from plait.models.pieces import read_pieces
from plait.models.pretrained import PlaitPreTrainedModel

OPTIMISER_FILE = "optimizer.pt"


def shard(model: PlaitPreTrainedModel, device_type: str, bf16: bool) -> None:
    """Shard a model in place over all processes: each block, then the rest (embeddings, head, shared parameters).

    Every process must hold the same weights. With ``bf16`` the blocks' weights travel and multiply in bf16 and
    gradients are summed in fp32; what is kept, and everything outside the blocks, stays fp32.

    Args:
        model: the whole model.
        device_type: ``cuda`` or ``cpu``; the default process group must serve it.
        bf16: mixed precision.
    """
    mesh = init_device_mesh(device_type, (dist.get_world_size(),))
    marks = {name: vars(parameter).copy() for name, parameter in model.named_parameters()}
    # autocast casts inside the blocks; casting their inputs as well would round the residual stream
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in model.model.layers:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh, mp_policy=policy if bf16 else MixedPrecisionPolicy())  # type: ignore[arg-type]
    fully_shard(model, mesh=mesh)
    for name, parameter in model.named_parameters():  # a sharded parameter is a new object
        vars(parameter).update(marks[name])


def is_sharded(model: nn.Module) -> bool:
    """Whether :func:`shard` was called on the model."""
    return isinstance(model, FSDPModule)


def whole(value: Tensor) -> Tensor:
    """The full tensor of a sharded one, gathered by all processes together; others as they are."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def full_weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights on the CPU of the first process, nothing on the others; a tied one once. All must call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    once = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    return {name: value for name, value in weights.items() if name in once}


def save(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Write weights and optimiser states; every process writes its own part."""
    weights, states = get_state_dict(model, optimiser)
    with _alone_or_together() as alone:
        dcp.save({"model": weights, "optimiser": states}, checkpoint_id=folder, no_dist=alone)


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Weights of a checkpoint of either kind into a model of either kind.

    Raises:
        TrainingError: a parameter, or a buffer that is saved, which an ordinary checkpoint lacks.
    """
    if (checkpoint / SHARDED_FOLDER).exists():
        weights = get_model_state_dict(model)
        with _alone_or_together() as alone:
            read_pieces({"model": weights}, checkpoint / SHARDED_FOLDER, alone=alone)
        set_model_state_dict(model, weights)
        return
    saved, kept = load_file(checkpoint / SAFE_WEIGHTS_NAME), model.state_dict().keys()
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name in saved:
                value.copy_(_placed(saved[name], value))
            elif name in kept:
                raise TrainingError(f"{checkpoint / SAFE_WEIGHTS_NAME} has no weight {name!r}; delete {checkpoint}.")


def load_optimiser(checkpoint: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Optimiser states of a checkpoint of either kind into the optimiser of a model of either kind."""
    if (checkpoint / SHARDED_FOLDER).exists():
        _, states = get_state_dict(model, optimiser)
        with _alone_or_together() as alone:
            read_pieces({"optimiser": states}, checkpoint / SHARDED_FOLDER, alone=alone)
        set_optimizer_state_dict(model, optimiser, states)
        return
    saved = torch.load(checkpoint / OPTIMISER_FILE, map_location="cpu", weights_only=True)
    parameters = dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    order = [names[id(parameter)] for group in optimiser.param_groups for parameter in group["params"]]
    for index, state in saved["state"].items():
        like = parameters[order[index]]
        saved["state"][index] = {key: _placed_state(value, like) for key, value in state.items()}
    optimiser.load_state_dict(saved)


@contextlib.contextmanager
def _alone_or_together() -> Iterator[bool]:
    """Whether there is no process group; torch warns of that even where it is told."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield not dist.is_initialized()


def _placed_state(value: Any, like: Tensor) -> Any:
    """A moment as its parameter is placed, at the address of a new tensor; the number of steps stays plain."""
    return aligned(_placed(value, like)) if isinstance(value, Tensor) and value.shape == like.shape else value


def _placed(full: Tensor, like: Tensor) -> Tensor:
    if not isinstance(like, DTensor):
        return full
    # every process has read the file: each takes its part, nothing is sent
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

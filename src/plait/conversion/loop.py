"""A training loop for any loss: deterministic, logged, and gone on with after it was killed."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from plait.data.packing import collate
from plait.errors import TrainingError
from plait.files.writing import PARTIAL, clean, publish_folder, read_back, write_json
from plait.models.alignment import aligned
from plait.runs.checkpoint import newest_whole, rotate
from plait.runs.config import TrainingSection
from plait.runs.metrics import MetricsFile
from plait.training.hooks import after_step
from plait.training.optimiser import build_optimiser, drop_frozen_gradients, set_rate, training_groups
from plait.training.runner import resolved_precision

_STATE, _WEIGHTS, _OPTIMISER = "state.json", "trained.safetensors", "optimizer.pt"


@dataclass(frozen=True)
class Batch:
    """Rows of one step.

    Args:
        inputs: ``input_ids`` ``(B, T)``, and ``cu_seqlens`` where documents are apart: arguments of a model.
        targets: ``(B, T)``, -100 where none counts.
        real: ``(B, T)`` bool, False where a shorter row was filled.
    """

    inputs: Mapping[str, Tensor]
    targets: Tensor
    real: Tensor

    @classmethod
    def of(cls, dataset: Dataset[Any], first: int, size: int, device: torch.device) -> Batch:
        """``size`` rows of a dataset from row ``first`` on."""
        rows = [dataset[index] for index in range(first, first + size)]
        batch = collate(rows)
        targets = batch.pop("targets")
        real = torch.ones_like(targets, dtype=torch.bool)
        if len(targets) == len(rows):  # not packed into one row
            lengths = torch.tensor([len(row["input_ids"]) for row in rows])
            real = torch.arange(targets.shape[1]) < lengths[:, None]
        return cls({key: value.to(device) for key, value in batch.items()}, targets.to(device), real.to(device))


#: A loss of one batch, and further numbers for the log.
Loss = Callable[[Batch], tuple[Tensor, dict[str, float]]]


@dataclass
class Spent:
    """What a stage's training cost, over all resumptions.

    Args:
        steps: optimiser steps.
        tokens: real tokens read.
        seconds: time.
    """

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0


def fit(
    model: nn.Module,
    loss: Loss,
    dataset: Dataset[Any],
    training: TrainingSection,
    folder: Path,
    *,
    announce: Callable[[str], None] | None = None,
) -> Spent:
    """Train the parameters of ``model`` that need a gradient, from the last checkpoint in ``folder`` if it has one.

    On the CPU a killed and continued run ends with the same weights as one without a break, bit for bit: row i of the
    dataset depends on i alone and nothing is drawn at random here.

    Args:
        model: changed in place; on the device where it trains.
        loss: of a batch, by a forward pass of ``model``.
        dataset: at least ``steps * batch_size`` rows.
        training: steps, rates, clipping, precision, intervals.
        folder: gets ``metrics.jsonl`` and checkpoints.
        announce: told the loss now and then.

    Raises:
        TrainingError: a loss or gradient that is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clean(folder)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimiser, groups = build_optimiser(model, training), training_groups(model, training)
    spent = Spent()
    if saved := newest_whole(folder):
        spent = _restore(saved, model, optimiser)
    metrics = MetricsFile(folder, spent.steps, saved)
    device = next(iter(trained.values())).device
    autocast = resolved_precision(training) == "bf16"
    context = torch.autocast(device.type, torch.bfloat16) if autocast else contextlib.nullcontext()
    began, before, said = time.perf_counter(), spent.seconds, time.perf_counter()
    model.train()
    while spent.steps < training.steps:
        batch = Batch.of(dataset, spent.steps * training.batch_size, training.batch_size, device)
        with context:
            value, details = loss(batch)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        drop_frozen_gradients(model, groups, spent.steps)
        norm = nn.utils.clip_grad_norm_(trained.values(), training.clip or math.inf)
        now = {"loss": value.item(), "grad_norm": norm.item()}
        if not all(map(math.isfinite, now.values())):
            raise TrainingError(
                f"{folder.name}, step {spent.steps + 1}: the loss is {now['loss']:g}, the norm of its gradient "
                f"{now['grad_norm']:g}. Try lower rates (now {training.learning_rate:g}) or fp32, in a new folder."
            )
        set_rate(optimiser, spent.steps, training, groups)
        optimiser.step()
        after_step(model)
        spent.steps += 1
        spent.tokens += int(batch.real.sum())
        spent.seconds = before + time.perf_counter() - began
        last = spent.steps == training.steps
        if last or spent.steps % training.log_every == 0:
            metrics.write({"step": spent.steps, **now, "lr": optimiser.param_groups[0]["lr"], **details})
        if announce is not None and (last or time.perf_counter() - said > 15):
            said = time.perf_counter()
            speed = spent.tokens / spent.seconds
            announce(f"{folder.name} {spent.steps}/{training.steps}  loss {now['loss']:.4f}  {speed:,.0f} tokens/s")
        if last or spent.steps % training.save_every == 0:
            _save(folder, _tensors(model), optimiser, spent, training.keep, metrics.path)
    model.eval()
    return spent


def _save(
    folder: Path,
    tensors: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
    spent: Spent,
    keep: int,
    metrics: Path,
) -> None:
    name = f"checkpoint-{spent.steps}"
    partial = folder / f"{PARTIAL}-{name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    save_file({key: value.detach().contiguous() for key, value in tensors.items()}, partial / _WEIGHTS)
    torch.save(optimiser.state_dict(), partial / _OPTIMISER)
    write_json(partial / _STATE, vars(spent))
    shutil.copyfile(metrics, partial / metrics.name)
    publish_folder(partial, folder / name)
    rotate(folder, keep)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a stage changes: parameters that need a gradient, and buffers that are saved."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return trained | {name: buffer for name, buffer in model.named_buffers() if name in model.state_dict()}


def _restore(checkpoint: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> Spent:
    """Weights and optimiser as they were.

    Raises:
        TrainingError: the checkpoint has other parameters.
    """
    weights, tensors = load_file(checkpoint / _WEIGHTS), _tensors(model)
    if weights.keys() != tensors.keys():
        raise TrainingError(f"{checkpoint} trains other parameters than this stage; delete {checkpoint.parent}.")
    with torch.no_grad():
        for name, value in weights.items():
            tensors[name].copy_(value)
    states = torch.load(checkpoint / _OPTIMISER, weights_only=True)
    for state in states["state"].values():
        state.update({key: aligned(value) for key, value in state.items() if isinstance(value, Tensor)})
    optimiser.load_state_dict(states)
    return Spent(**read_back(checkpoint / _STATE))

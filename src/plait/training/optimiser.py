"""AdamW with its parameter groups, and the schedule of its rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from plait.runs.config import TrainingSection

#: Endings of names of parameters that set a decay, whatever their shape.
DECAY_PARAMETERS = ("A_log", "dt_bias", "lower_bounds")


def parameter_groups(model: nn.Module) -> tuple[list[str], list[str]]:
    """Names of the trainable parameters that weight decay shrinks, and of those it leaves alone.

    Decayed is what multiplies an input: weights of linear layers and convolutions, and embeddings (as GPT-2,
    Llama and their successors do). Left alone is every parameter with fewer than two dimensions (norms, biases,
    ``A_log``, ``dt_bias``), every name that ends as one of :data:`DECAY_PARAMETERS`, and every parameter that
    carries ``_no_weight_decay = True``. A tensor shared by two modules is listed once.

    Args:
        model: the model; parameters that need no gradient are in neither list.
    """
    decayed: list[str] = []
    left: list[str] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        spared = parameter.dim() < 2 or name.endswith(DECAY_PARAMETERS) or getattr(parameter, "_no_weight_decay", False)
        (left if spared else decayed).append(name)
    return decayed, left


def build_optimiser(model: nn.Module, training: TrainingSection) -> torch.optim.AdamW:
    """AdamW over the two groups of :func:`parameter_groups`."""
    parameters = dict(model.named_parameters())
    decayed, left = parameter_groups(model)
    groups = [
        {"params": [parameters[name] for name in names], "weight_decay": decay}
        for names, decay in ((decayed, training.weight_decay), (left, 0.0))
        if names
    ]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters.values())
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=training.betas, eps=training.epsilon, fused=fused)


def rate_factor(step: int, training: TrainingSection) -> float:
    """The learning rate of a step over the peak rate.

    Linear from ``1 / warmup_steps`` to 1 during the warm-up, then a cosine that reaches ``final_fraction``
    after the last step.

    Args:
        step: optimiser steps already taken, from 0.
        training: gives ``steps``, ``warmup_steps`` and ``final_fraction``.
    """
    if step < training.warmup_steps:
        return (step + 1) / training.warmup_steps
    progress = min(1.0, (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return training.final_fraction + (1 - training.final_fraction) * cosine


def build_schedule(optimiser: torch.optim.Optimizer, training: TrainingSection) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule of :func:`rate_factor` for an optimiser."""
    return torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_factor(step, training))


def set_rate(optimiser: torch.optim.Optimizer, step: int, training: TrainingSection) -> float:
    """Give every group the rate of the step that comes after ``step`` steps; returns it."""
    rate = training.learning_rate * rate_factor(step, training)
    for group in optimiser.param_groups:
        group["lr"] = rate
    return rate

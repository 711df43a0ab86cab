"""AdamW with its parameter groups, and the schedule of its rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from plait.errors import OptionError
from plait.runs.config import GroupSection, TrainingSection

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


@dataclass(frozen=True)
class Group:
    """Parameters that are trained alike.

    Args:
        names: of the parameters.
        weight_decay: theirs.
        rate: their learning rate over the training's.
        start: first step at which they are trained.
        end: step from which on they are frozen again, or None.
    """

    names: list[str]
    weight_decay: float
    rate: float = 1.0
    start: int = 0
    end: int | None = None

    def frozen(self, step: int) -> bool:
        """Whether they are left as they are in the step after ``step`` steps."""
        return step < self.start or (self.end is not None and step >= self.end)


def training_groups(model: nn.Module, training: TrainingSection) -> list[Group]:
    """The trainable parameters in groups: those of no rule first, then rule by rule, each with and without decay.

    Args:
        model: the model.
        training: gives the rules (``groups``) and the weight decay.

    Raises:
        OptionError: a rule that matches no trainable parameter which an earlier one leaves.
    """
    rules = [None, *training.groups]
    sides = parameter_groups(model)
    belongs = {name: _rule(name, training) for names in sides for name in names}
    groups = []
    for rule in rules:
        if rule is not None and rule not in belongs.values():
            raise OptionError(
                f"training.groups: no trainable parameter that is left matches {rule.match!r}; they are named as in "
                f"{next(iter(belongs), 'a model')}."
            )
        for names, decay in zip(sides, (training.weight_decay, 0.0), strict=True):
            own = [name for name in names if belongs[name] is rule]
            if own and rule is None:
                groups.append(Group(own, decay))
            elif own and rule is not None:
                decay = decay if rule.weight_decay is None else rule.weight_decay
                groups.append(Group(own, decay, rule.rate, rule.start, rule.end))
    return groups


def _rule(name: str, training: TrainingSection) -> GroupSection | None:
    return next((rule for rule in training.groups if fnmatchcase(name, rule.match)), None)


def build_optimiser(model: nn.Module, training: TrainingSection) -> torch.optim.AdamW:
    """AdamW over :func:`training_groups`."""
    parameters = dict(model.named_parameters())
    groups = [
        {
            "params": [parameters[name] for name in group.names],
            "weight_decay": group.weight_decay,
            "lr": training.learning_rate * group.rate,
        }
        for group in training_groups(model, training)
    ]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters.values())
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=training.betas, eps=training.epsilon, fused=fused)


def drop_frozen_gradients(model: nn.Module, groups: Iterable[Group], step: int) -> None:
    """Take the gradients of groups that are frozen now, so that neither clipping nor the optimiser sees them."""
    frozen = {name for group in groups if group.frozen(step) for name in group.names}
    for name, parameter in model.named_parameters() if frozen else ():
        if name in frozen:
            parameter.grad = None


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


def set_rate(
    optimiser: torch.optim.Optimizer, step: int, training: TrainingSection, groups: Sequence[Group]
) -> list[float]:
    """Give the optimiser's groups, which are ``groups``, the rates of the step after ``step`` steps; returns them."""
    rates = [training.learning_rate * group.rate * rate_factor(step, training) for group in groups]
    for group, rate in zip(optimiser.param_groups, rates, strict=True):
        group["lr"] = rate
    return rates

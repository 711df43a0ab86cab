"""Accuracy of associative recall (MQAR) at several lengths and numbers of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from plait.data import TaskData
from plait.data.tasks.base import per_example_accuracy
from plait.data.tasks.mqar import MQAR
from plait.errors import OptionError, nearest


def check_settings(data: TaskData, settings: Sequence[Mapping[str, int]]) -> list[TaskData]:
    """The data of each setting.

    Args:
        data: what the model was trained on.
        settings: each ``{"length": T, "pairs": K}``.

    Raises:
        OptionError: not an MQAR task, or a setting with other keys.
        DataError: a setting whose sizes do not fit together.
    """
    if not isinstance(data.task, MQAR):
        raise OptionError(f"evaluate.mqar needs a model trained on mqar, not on {type(data.task).__name__}.")
    wanted = ("length", "pairs")
    for index, setting in enumerate(settings):
        for key in setting:
            if key not in wanted:
                raise OptionError(f"evaluate.mqar[{index}]: unknown key {key!r}.{nearest(key, wanted)}")
        missing = [key for key in wanted if key not in setting]
        if missing:
            raise OptionError(f"evaluate.mqar[{index}] = {dict(setting)}: {missing[0]!r} is missing.")
    return [data.with_options(**setting) for setting in settings]


def recall(
    model: nn.Module, data: TaskData, settings: Sequence[Mapping[str, int]], *, examples: int, batch_size: int
) -> list[dict[str, Any]]:
    """Accuracy at each setting, on held-out examples that are the same for every model.

    Args:
        model: trained on MQAR, in evaluation mode.
        data: what it was trained on; vocabulary, fillers and powers stay, length and pairs change.
        settings: each ``{"length": T, "pairs": K}``; none stands for those of the training data.
        examples: rows per setting.
        batch_size: rows per forward pass.

    Returns:
        per setting ``length``, ``pairs``, ``accuracy`` (mean over the queries of a row, then over rows, as in
        Zoology), ``examples`` and ``per_example``.
    """
    if not settings and isinstance(data.task, MQAR):
        settings = [{"length": setting.length, "pairs": setting.pairs} for setting in data.task.settings]
    results = []
    for setting, part in zip(settings, check_settings(data, settings), strict=True):
        values = per_example(model, part, examples, batch_size)
        accuracy = sum(values) / len(values)
        results.append({**setting, "accuracy": accuracy, "examples": len(values), "per_example": values})
    return results


@torch.no_grad()
def per_example(model: nn.Module, data: TaskData, examples: int, batch_size: int) -> list[float]:
    """Share of right answers in each of ``examples`` rows of the test split."""
    device = next(model.parameters()).device
    dataset = data.test_dataset(examples)
    values: list[float] = []
    for start in range(0, examples, batch_size):
        batch = data.collate([dataset[index] for index in range(start, min(start + batch_size, examples))])
        logits = model(input_ids=batch["input_ids"].to(device), use_cache=False).logits
        values += per_example_accuracy(logits.argmax(dim=-1).cpu(), batch["targets"]).tolist()
    return values

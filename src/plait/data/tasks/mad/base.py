"""What the six tasks share: a limited number of training rows, settings, the score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from plait.data.tasks.base import IGNORED, Ids, Task
from plait.errors import DataError


@dataclass(frozen=True)
class MadTask(Task):
    """A task of MAD.

    Args:
        examples: different training rows, shown again and again; None: never the same row twice.
    """

    examples: int | None = None

    def __post_init__(self) -> None:
        if self.examples is not None and self.examples < 1:
            raise DataError(f"{type(self).__name__}: examples={self.examples} must be at least 1.")

    @property
    def training_rows(self) -> int | None:
        return self.examples

    def _too_small(self, option: str, needed: int, reason: str) -> None:
        """Raise :class:`DataError` if an option is below what the others need."""
        value = getattr(self, option)
        if value < needed:
            raise DataError(
                f"{type(self).__name__}: {option}={value} is too small for {reason}; use {option} >= {needed}."
            )


def settings(baseline: Mapping[str, Any], **changes: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Presets: ``baseline``, and ``OPTION-VALUE`` for each value of each option that is changed alone."""
    presets = {"baseline": dict(baseline)}
    for option, values in changes.items():
        presets |= {f"{option}-{value}": {**baseline, option: value} for value in values}
    return presets


def mad_score(accuracies: Mapping[str, float]) -> float:
    """The MAD score of a model: its mean accuracy over all settings.

    Args:
        accuracies: accuracy in 0..1 by setting, such as ``mad_compression/baseline``; of each setting the best over the
            learning rates and weight decays that were tried.

    Raises:
        DataError: no setting, or a value outside 0..1.
    """
    if not accuracies:
        raise DataError("mad_score needs the accuracy of at least one setting.")
    for setting, value in accuracies.items():
        if not 0 <= value <= 1:
            raise DataError(f"mad_score: the accuracy of {setting!r} is {value}, not in 0..1.")
    return sum(accuracies.values()) / len(accuracies)


def first_equal(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Index of the first entry of the same row that is equal, for each entry of ``(rows, n)`` non-negative codes."""
    rows, n = codes.shape
    by_row = codes + np.arange(rows)[:, None] * (codes.max(initial=0) + 1)
    _, index, inverse = np.unique(by_row, return_index=True, return_inverse=True)
    return index[inverse].reshape(rows, n) % n


def next_tokens(inputs: Ids) -> Ids:
    """Every next token as a target; the last position has none."""
    targets = np.full_like(inputs, IGNORED)
    targets[:, :-1] = inputs[:, 1:]
    return targets

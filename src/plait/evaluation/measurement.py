"""The contract of whatever is measured of a model: it has a name and settings, and gives scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from plait.evaluation.batching import Batches
from plait.evaluation.score import Score
from plait.evaluation.subject import Subject

#: Told how many samples have been done since the last call, and where that was not known before how many there are.
Advance = Callable[..., None]


def silent(count: int, total: int | None = None) -> None:
    """An :data:`Advance` that tells nobody."""


class Measurement(ABC):
    """One thing to measure of a model.

    Attributes:
        kind: ``text``, ``task``, ``benchmark``, ``harness`` or ``decode``.
        name: for people and for file names.
        samples: how many there are, for the progress.
        unit: what they are, for the progress.
        repeatable: the same model gives the same scores again, so kept ones are not measured a second time.
    """

    kind: ClassVar[str]
    unit: ClassVar[str] = "samples"
    repeatable: ClassVar[bool] = True

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def samples(self) -> int: ...

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that the scores depend on beside the model."""

    @abstractmethod
    def check(self, subject: Subject) -> None:
        """Raise a :class:`~plait.errors.PlaitError` where this model cannot be measured so."""

    @abstractmethod
    def scores(self, subject: Subject, batches: Batches, advance: Advance) -> list[Score]:
        """The scores of a model that :meth:`check` has let pass, the most telling one first."""

    def measure(self, subject: Subject, batches: Batches | None = None, advance: Advance = silent) -> list[Score]:
        """Measure a model.

        Args:
            subject: the model.
            batches: rows at a time; None: as many as fit most machines.
            advance: told how many samples have been done since the last call.

        Returns:
            One score for each metric, the most telling one first.

        Raises:
            PlaitError: this model cannot be measured so; the message says why.
        """
        self.check(subject)
        return self.scores(subject, batches or Batches("auto", subject.device), advance)

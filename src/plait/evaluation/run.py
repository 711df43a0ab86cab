"""The evaluation of one model: what it was trained on and what else is asked; and the whole of one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.data import DataBundle, build
from plait.evaluation.decode import DecodeMeasurement
from plait.evaluation.measurement import Measurement
from plait.evaluation.session import result_of
from plait.evaluation.subject import Subject, open_model
from plait.evaluation.suites import Unavailable, measurements_of
from plait.evaluation.trained import trained_measurements
from plait.models.architecture import check_architecture
from plait.provenance import provenance
from plait.runs.config import EvaluateSection, RunConfig
from plait.runs.folder import DATA_FOLDER
from plait.training.runner import train

__all__ = ["Agenda", "agenda_of", "evaluate", "open_model", "train_and_evaluate"]


@dataclass(frozen=True)
class Agenda:
    """What is measured of one model.

    Args:
        trained: measurements of what it was trained on.
        further: other measurements.
        unavailable: parts of suites that it cannot have.
    """

    trained: Sequence[Measurement] = ()
    further: Sequence[Measurement] = ()
    unavailable: Sequence[Unavailable] = ()

    @property
    def measurements(self) -> list[Measurement]:
        """All of them, in their order."""
        return [*self.trained, *self.further]

    def record(self, subject: Subject, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """What is kept and printed of an evaluation.

        Args:
            subject: the model.
            results: of :attr:`measurements`, in their order; one that failed has a ``reason``.

        Returns:
            ``parameters``; ``results`` (:mod:`plait.evaluation.results`), each with ``trained``: whether the model was
            trained on it; ``unavailable`` (each ``name`` and ``reason``).
        """
        marked = [{**result, "trained": index < len(self.trained)} for index, result in enumerate(results)]
        failed = [{"name": result["name"], "reason": result["reason"]} for result in marked if "reason" in result]
        return {
            "parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
            "results": [result for result in marked if "reason" not in result],
            "unavailable": [{"name": part.name, "reason": part.reason} for part in self.unavailable] + failed,
        }


def agenda_of(subject: Subject, data: Sequence[DataBundle], section: EvaluateSection) -> Agenda:
    """The measurements that an ``evaluate`` section asks for.

    Args:
        subject: the model.
        data: what it was trained on; none: that is not measured.
        section: as in a run file.

    Raises:
        PlaitError: something that was named, not only part of a suite, cannot be measured.
    """
    trained: dict[str, Measurement] = {}
    for bundle in data:
        for measurement in trained_measurements(bundle, section):
            measurement.check(subject)
            trained[repr((measurement.kind, measurement.settings))] = measurement
    wanted = [measurement for part in section.measure for measurement in measurements_of(part, subject)]
    further = [measurement for measurement in wanted if isinstance(measurement, Measurement)]
    return Agenda(
        list(trained.values()),
        [*further, *(DecodeMeasurement(context) for context in section.decode_contexts)],
        [measurement for measurement in wanted if isinstance(measurement, Unavailable)],
    )


def evaluate(subject: Subject, data: DataBundle | None, section: EvaluateSection) -> dict[str, Any]:
    """Measure what an ``evaluate`` section asks for, on test splits, which training never reads.

    Args:
        subject: the model.
        data: what it was trained on; None: that is not measured.
        section: as in a run file.

    Returns:
        See :meth:`Agenda.record`; ready for JSON.

    Raises:
        PlaitError: something that was named, not only part of a suite, cannot be measured.
    """
    model = subject.model
    training = model.training
    model.eval()
    try:
        agenda = agenda_of(subject, [] if data is None else [data], section)
        return agenda.record(subject, [result_of(measurement, subject) for measurement in agenda.measurements])
    finally:
        model.train(training)


def train_and_evaluate(
    config: RunConfig,
    folder: Path,
    *,
    progress: bool = True,
    announce: Callable[[str], None] | None = None,
    data_folder: Path | None = None,
    init_from: str | Path | None = None,
) -> dict[str, Any]:
    """Train a run (or go on with it, or find it finished) and measure its model.

    Args:
        config, folder, progress, announce, data_folder, init_from: see :func:`plait.training.runner.train`.

    Returns:
        ``config`` (resolved), ``evaluation`` (:func:`evaluate`), ``train`` (``losses`` as [step, loss], ``seconds``,
        ``tokens``), ``versions``, ``machine``, ``commit`` and ``seed``; ready for JSON.

    Raises:
        OptionError: the evaluation does not fit the run; found before training.
        TrainingError, FolderInUse, Interrupted: as :func:`plait.training.runner.train`.
    """
    check_architecture(config)
    data_folder = data_folder or Path(folder) / DATA_FOLDER
    data = build(config.data, data_folder, config.seed)
    trained_measurements(data, config.evaluate)  # settings that fit no task are told before training
    result = train(config, folder, progress=progress, announce=announce, data_folder=data_folder, init_from=init_from)
    model, _ = open_model(result.model_folder)
    return {
        "config": config.model_dump(mode="json"),
        "evaluation": evaluate(Subject.of(model, data.tokenizer, config.data), data, config.evaluate),
        "train": {
            "losses": [[step, loss] for step, loss in result.losses],
            "seconds": result.seconds,
            "tokens": result.tokens,
        },
        **provenance(),
        "seed": config.seed,
    }

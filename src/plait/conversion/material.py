"""What a conversion learns from and is measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from plait.data import DataBundle
from plait.data.order import stable_hash
from plait.errors import OptionError
from plait.evaluation.batching import Batches
from plait.evaluation.results import by_name
from plait.evaluation.session import result_of
from plait.evaluation.subject import Subject
from plait.evaluation.texts import BITS
from plait.evaluation.trained import trained_measurements
from plait.models import PlaitForCausalLM
from plait.runs.config import DataSection, EvaluateSection
from plait.sections import read_yaml, validated


def read_section(source: str | Path | DataSection) -> DataSection:
    """The data that a user names.

    Args:
        source: a YAML file that is a ``data`` section or holds one (a run file, a fixture's recipe); a text file or a
            folder of texts; a corpus as run files name it (``python-stdlib``, ``hf:NAME``); or the section itself.

    Raises:
        OptionError: a file that cannot be read as one of them.
    """
    if isinstance(source, DataSection):
        return source
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        values = read_yaml(path)
        inside = values.get("data", values) if isinstance(values, dict) else values
        return validated(DataSection, inside, str(path))
    corpus = f"text:{path}" if path.exists() else str(source)
    return DataSection(corpus=corpus)


def settled(section: DataSection) -> DataSection:
    """A mixture as it stands at the end of its training: a model that is converted has its curriculum behind it."""
    if not section.mixture:
        return section
    last = [part.model_copy(update={"start": 0.0}) for part in section.mixture if part.end == 1]
    if not last:
        raise OptionError("data.mixture: no part is active at the end of the training; give one that is.")
    return section.model_copy(update={"mixture": last})


def check_vocabulary(bundle: DataBundle, teacher: PlaitForCausalLM) -> None:
    """Raise :class:`OptionError` where the data has ids that the model does not know."""
    known = teacher.config.vocab_size
    if bundle.vocab_size > known:
        raise OptionError(f"The data has ids up to {bundle.vocab_size - 1}, but the model knows {known} tokens.")


def measure(model: PlaitForCausalLM, bundle: DataBundle, *, samples: int, batch_size: int) -> list[dict[str, Any]]:
    """What a model makes of the data, on rows of the test split that no training reads.

    Args:
        model: in evaluation mode.
        bundle: every task in it gives an accuracy, every text bits per byte.
        samples: rows of each.
        batch_size: rows at a time.

    Returns:
        Results, see :mod:`plait.evaluation.results`.
    """
    subject = Subject.of(model, bundle.tokenizer)
    batches = Batches(batch_size, subject.device)
    wanted = trained_measurements(bundle, EvaluateSection(limit=samples, ar_hits=False), baselines=False)
    return [result_of(measurement, subject, batches) for measurement in wanted]


def recall_and_language(results: Sequence[Mapping[str, Any]]) -> tuple[float | None, float | None]:
    """The mean accuracy over tasks and the mean bits per byte over texts; None where there is none."""
    return _mean(list(by_name(results, "accuracy").values())), _mean(list(by_name(results, BITS).values()))


def rows(bundle: DataBundle, stage: str, samples: int) -> torch.utils.data.Dataset[Any]:
    """Training rows of a stage; every stage reads others."""
    return bundle.train_dataset(samples, stable_hash(stage))  # type: ignore[attr-defined]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None

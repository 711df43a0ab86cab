"""What a conversion learns from and is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from plait import catalog
from plait.data import DataBundle, TaskData, TextData
from plait.data.order import stable_hash
from plait.errors import OptionError
from plait.evaluation.perplexity import language_modelling
from plait.evaluation.recall import per_example
from plait.evaluation.run import parts
from plait.models import PlaitForCausalLM
from plait.runs.config import DataSection
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


def label(part: TextData | TaskData) -> str:
    """A source for people: ``mqar 128`` or ``text python-stdlib``."""
    if isinstance(part, TextData):
        return f"text {part.data.corpus}"
    return f"{catalog.name_of(type(part.task), 'task')} {part.length}"


def measure(model: PlaitForCausalLM, bundle: DataBundle, *, samples: int, batch_size: int) -> dict[str, Any]:
    """Recall and language of a model, on rows of the test split that no training reads.

    Args:
        model: in evaluation mode.
        bundle: every task in it gives an accuracy, every text bits per byte.
        samples: rows of each task; a text is read in as many windows.
        batch_size: rows at a time.

    Returns:
        ``recall`` (accuracy by task), ``bits_per_byte`` (by text), and of each the mean, None where there is none.
    """
    recall: dict[str, float] = {}
    bits: dict[str, float] = {}
    for part in parts(bundle):
        if isinstance(part, TextData):
            found = language_modelling(
                model,
                part.test_dataset(samples),
                batch_size=batch_size,
                vocab_size=model.config.vocab_size,
                bytes_per_token=part.bytes_per_token("test"),
                split_ar_hits=False,
            )
            bits[label(part)] = found["bits_per_byte"]
        else:
            values = per_example(model, part, samples, batch_size)
            recall[label(part)] = sum(values) / len(values)
    return {
        "recall": recall,
        "bits_per_byte": bits,
        "mean_recall": _mean(list(recall.values())),
        "mean_bits_per_byte": _mean(list(bits.values())),
    }


def rows(bundle: DataBundle, stage: str, samples: int) -> torch.utils.data.Dataset[Any]:
    """Training rows of a stage; every stage reads others."""
    return bundle.train_dataset(samples, stable_hash(stage))  # type: ignore[attr-defined]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None

"""All measurements of one model, and the whole of one run: train, then measure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from plait import catalog
from plait.data import DataBundle, MixtureData, TaskData, TextData, build
from plait.data.packing import TokenDataset
from plait.data.tasks.mqar import MQAR
from plait.errors import OptionError
from plait.evaluation.baselines import text_baselines
from plait.evaluation.batching import Batches
from plait.evaluation.decode import decode_speed
from plait.evaluation.measurements import TaskMeasurement
from plait.evaluation.perplexity import language_modelling
from plait.evaluation.recall import check_settings, recall
from plait.evaluation.session import scored
from plait.evaluation.subject import Subject, open_model
from plait.evaluation.suites import Unavailable, asked
from plait.models.architecture import check_architecture
from plait.provenance import provenance
from plait.runs.config import DataSection, EvaluateSection, RunConfig
from plait.runs.folder import DATA_FOLDER
from plait.training.runner import train

__all__ = ["evaluate", "open_model", "train_and_evaluate"]


def evaluate(
    model: PreTrainedModel,
    data: DataBundle | None,
    section: EvaluateSection,
    *,
    batch_size: int = 16,
    trained: DataSection | None = None,
) -> dict[str, Any]:
    """What ``section`` asks for, on the test split, which training never reads.

    Args:
        model: a causal language model.
        data: held-out text, task or a mixture of them; None measures decoding and the suites only.
        section: what is measured.
        batch_size: rows per batch.
        trained: what the model was trained on; suites take its options.

    Returns:
        ``lm`` (:func:`~plait.evaluation.perplexity.language_modelling` with
        :func:`~plait.evaluation.baselines.text_baselines` as ``baselines``, None without text), ``mqar``
        (:func:`~plait.evaluation.recall.recall`), ``tasks`` (a score of every other task that it was trained on),
        ``suites`` (a score of each measurement, or the ``reason`` why this model cannot have it), ``decode``
        (:func:`~plait.evaluation.decode.decode_speed`) and ``parameters``.

    Raises:
        OptionError: MQAR settings for a model that was not trained on it.
    """
    if data is not None:
        check_evaluation(data, section)
    training = model.training
    model.eval()
    result: dict[str, Any] = {"lm": None, "mqar": [], "tasks": [], "suites": []}
    subject = Subject.of(model, None if data is None else data.tokenizer, trained)
    vocab_size = subject.vocab_size
    for part in parts(data):
        if isinstance(part, TextData):
            if result["lm"] is None:
                check_text(part, section, vocab_size)
                result["lm"] = _language_modelling(model, part, section, batch_size, vocab_size)
        elif isinstance(part.task, MQAR):
            result["mqar"] += recall(model, part, section.mqar, examples=section.mqar_examples, batch_size=batch_size)
        else:
            name = catalog.name_of(type(part.task), "task")
            measurement = TaskMeasurement(name, part.task, section.mqar_examples)
            result["tasks"].append(scored(measurement, subject, Batches(batch_size, subject.device)))
    for suite in section.suites:
        for one in asked(suite, subject):
            if isinstance(one, Unavailable):
                result["suites"].append({"name": one.name, "reason": one.reason})
            else:
                result["suites"].append(scored(one, subject, Batches("auto", subject.device)))
    result["decode"] = decode_speed(model, section.decode_contexts, vocab_size)
    result["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    model.train(training)
    return result


def parts(data: DataBundle | None) -> list[TextData | TaskData]:
    """The sources that a model at the end of its training should know."""
    if data is None:
        return []
    if isinstance(data, MixtureData):
        return [part for part, (_, _, end) in zip(data.parts, data.shares, strict=True) if end == 1]
    assert isinstance(data, TextData | TaskData)
    return [data]


def _language_modelling(
    model: nn.Module, data: TextData, section: EvaluateSection, batch_size: int, vocab_size: int
) -> dict[str, Any]:
    dataset = data.test_dataset(section.batches * batch_size)
    assert isinstance(dataset, TokenDataset)
    found = language_modelling(
        model,
        dataset,
        batch_size=batch_size,
        vocab_size=vocab_size,
        bytes_per_token=data.bytes_per_token("test"),
        split_ar_hits=section.ar_hits,
        counts=data.bigram_counts() if section.ar_hits and section.ar_hits_rare_below else None,
        rare_below=section.ar_hits_rare_below,
    )
    return {**found, "baselines": text_baselines(data, dataset)}


def check_evaluation(data: DataBundle, section: EvaluateSection) -> None:
    """Raise :class:`OptionError` where the evaluation does not fit what is learnt; found before training."""
    tasks = [part for part in parts(data) if isinstance(part, TaskData) and isinstance(part.task, MQAR)]
    if section.mqar and not tasks:
        raise OptionError("evaluate.mqar needs a model trained on the task mqar; this one is not.")
    for task in tasks:
        check_settings(task, section.mqar)


def check_text(data: TextData, section: EvaluateSection, vocab_size: int) -> None:
    """Raise :class:`OptionError` where text cannot be measured as asked."""
    if data.vocab_size > vocab_size:
        raise OptionError(
            f"The tokenizer has ids up to {data.vocab_size - 1} but the model knows {vocab_size} tokens; "
            "use the tokenizer that the model was trained with."
        )


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
    check_evaluation(data, config.evaluate)
    result = train(config, folder, progress=progress, announce=announce, data_folder=data_folder, init_from=init_from)
    model, _ = open_model(result.model_folder)
    return {
        "config": config.model_dump(mode="json"),
        "evaluation": evaluate(
            model, data, config.evaluate, batch_size=config.training.batch_size, trained=config.data
        ),
        "train": {
            "losses": [[step, loss] for step, loss in result.losses],
            "seconds": result.seconds,
            "tokens": result.tokens,
        },
        **provenance(),
        "seed": config.seed,
    }

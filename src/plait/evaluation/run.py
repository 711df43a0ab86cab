"""All measurements of one model, and the whole of one run: train, then measure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plait.data import TaskData, TextData, build
from plait.errors import OptionError
from plait.evaluation.decode import decode_speed
from plait.evaluation.perplexity import language_modelling
from plait.evaluation.recall import check_settings, recall
from plait.models import load
from plait.training.config import EvaluateSection, RunConfig
from plait.training.folder import DATA_FOLDER, versions
from plait.training.runner import quiet, train


def evaluate(
    model: nn.Module, data: TextData | TaskData | None, section: EvaluateSection, *, batch_size: int = 16
) -> dict[str, Any]:
    """What ``section`` asks for, on the test split, which training never reads.

    Args:
        model: a causal language model.
        data: held-out text or task; None measures decoding only.
        section: what is measured.
        batch_size: rows per batch.

    Returns:
        ``lm`` (:func:`~plait.evaluation.perplexity.language_modelling`, None without text), ``mqar``
        (:func:`~plait.evaluation.recall.recall`), ``decode`` (:func:`~plait.evaluation.decode.decode_speed`) and
        ``parameters``.

    Raises:
        OptionError: MQAR settings for a model that was not trained on it.
    """
    training = model.training
    model.eval()
    vocab_size = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator, union-attr]
    result: dict[str, Any] = {"lm": None, "mqar": []}
    if isinstance(data, TextData):
        check_text(data, section, vocab_size)
        result["lm"] = language_modelling(
            model,
            data.test_dataset(section.batches * batch_size),
            batch_size=batch_size,
            vocab_size=vocab_size,
            bytes_per_token=data.bytes_per_token("test"),
            split_ar_hits=section.ar_hits,
            counts=data.bigram_counts() if section.ar_hits and section.ar_hits_rare_below else None,
            rare_below=section.ar_hits_rare_below,
        )
    elif isinstance(data, TaskData):
        result["mqar"] = recall(model, data, section.mqar, examples=section.mqar_examples, batch_size=batch_size)
    result["decode"] = decode_speed(model, section.decode_contexts, vocab_size)
    result["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    model.train(training)
    return result


def check_text(data: TextData, section: EvaluateSection, vocab_size: int) -> None:
    """Raise :class:`OptionError` where text cannot be measured as asked."""
    if section.mqar:
        raise OptionError("evaluate.mqar needs a model trained on the task mqar; this one reads text.")
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
) -> dict[str, Any]:
    """Train a run (or go on with it, or find it finished) and measure its model.

    Args:
        config, folder, progress, announce, data_folder: see :func:`plait.training.runner.train`.

    Returns:
        ``config`` (resolved), ``evaluation`` (:func:`evaluate`), ``train`` (``losses`` as [step, loss], ``seconds``,
        ``tokens``), ``versions`` and ``seed``; ready for JSON.

    Raises:
        OptionError: the evaluation does not fit the run; found before training.
        TrainingError, Interrupted: as :func:`plait.training.runner.train`.
    """
    data_folder = data_folder or Path(folder) / DATA_FOLDER
    data = build(config.data, data_folder, config.seed)
    if isinstance(data, TextData):
        check_text(data, config.evaluate, data.vocab_size)
    elif config.evaluate.mqar:
        check_settings(data, config.evaluate.mqar)
    result = train(config, folder, progress=progress, announce=announce, data_folder=data_folder)
    model, _ = open_model(result.model_folder)
    return {
        "config": config.model_dump(mode="json"),
        "evaluation": evaluate(model, data, config.evaluate, batch_size=config.training.batch_size),
        "train": {
            "losses": [[step, loss] for step, loss in result.losses],
            "seconds": result.seconds,
            "tokens": result.tokens,
        },
        "versions": versions(),
        "seed": config.seed,
    }


def open_model(folder: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """:func:`plait.models.load`, without transformers' bars, on this machine's accelerator where it has one."""
    with quiet():
        model, tokenizer = load(folder)
    model.to(torch.accelerator.current_accelerator() or torch.device("cpu"))  # type: ignore[arg-type]
    return model, tokenizer

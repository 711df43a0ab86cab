"""Measure a model on standard task sets."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plait.errors import OptionError
from plait.evaluation.harness.names import require_lm_eval
from plait.provenance import provenance

if TYPE_CHECKING:
    from plait.evaluation.harness.model import HarnessModel, Progress

#: Resamples behind the standard error of metrics that are no means, such as perplexity.
BOOTSTRAP = 1000

#: Metrics that are 0 or 1 for a sample, the first that a task has counting as its correctness.
CORRECT = ("acc", "exact_match")


def run_harness(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    tasks: Sequence[str],
    *,
    data_dir: str | Path | None = None,
    limit: int | None = None,
    batch_size: int | Literal["auto"] = "auto",
    max_length: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Scores of a model on task sets of lm-eval (0.4.13 or later).

    Args:
        model: a causal language model of transformers, ours or not.
        tokenizer: its tokenizer.
        tasks: names such as ``lambada_openai`` and ``piqa``; without ``data_dir`` also lm-eval's groups.
        data_dir: folder of jsonl files, one for each task (:mod:`plait.evaluation.harness.tasks`); the network is not
            used then. By default rows come from the hub.
        limit: only the first so many rows of each task.
        batch_size: rows per batch, or ``auto``.
        max_length: most tokens that the model reads at once; of its configuration by default. Longer requests lose
            tokens from the left.
        seed: of few-shot examples and of tasks that sample text.
        progress: called with kind of request, done, all.

    Returns:
        ``tasks``: by name ``metrics`` (each ``value`` and ``stderr``, None where lm-eval has none), ``n`` samples,
        ``correct`` (0 or 1 for each sample in order, or None where a task has no such metric) and ``version``;
        ``groups``: by name ``metrics``; ``settings`` and ``versions``. Ready for JSON.

    Raises:
        OptionError: lm-eval is not installed, an unknown task, an option out of range.
        DataError: rows that cannot be read.
    """
    require_lm_eval()
    if tokenizer is None:
        raise OptionError("The model has no tokenizer, so it cannot be measured on tasks of text.")
    names = list(dict.fromkeys(tasks))
    if not names:
        raise OptionError("No task is named: give at least one, such as lambada_openai.")
    if limit is not None and limit < 1:
        raise OptionError(f"limit = {limit}: give a whole number of at least 1, or leave it out.")

    progress = None if progress is None else _audible(progress)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        from plait.evaluation.harness.model import HarnessModel

        training = model.training
        stack.callback(model.train, training)
        harness_model = HarnessModel(model, tokenizer, batch_size=batch_size, max_length=max_length, progress=progress)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plait-harness-")))
        stack.enter_context(_seeded(seed))
        results = _evaluate(harness_model, names, None if data_dir is None else Path(data_dir), folder, limit, seed)
        settings = {
            "limit": limit,
            "max_length": harness_model.max_length,
            "seed": seed,
            "shares_state": harness_model.scorer.shares_state,
        }
    samples = results["samples"]
    return {
        "tasks": {
            name: {
                "metrics": _metrics(results["results"][name]),
                "n": results["n-samples"][name]["effective"],
                "correct": _correct(samples[name]),
                "version": results["versions"][name],
            }
            for name in samples
        },
        "groups": {name: {"metrics": _metrics(values)} for name, values in results.get("groups", {}).items()},
        "settings": settings,
        **provenance("lm_eval"),
    }


def _evaluate(
    model: HarnessModel, names: list[str], data_dir: Path | None, folder: Path, limit: int | None, seed: int
) -> dict[str, Any]:
    """lm-eval's results, with samples."""
    from lm_eval.evaluator import evaluate

    from plait.evaluation.harness.tasks import folder_tasks, hub_tasks

    tasks = hub_tasks(names) if data_dir is None else folder_tasks(names, data_dir, folder)
    for task in tasks["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=seed)
    results = evaluate(lm=model, task_dict=tasks, limit=limit, bootstrap_iters=BOOTSTRAP)
    assert results is not None  # None on other ranks only
    return dict(results)


def _metrics(values: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """``{"acc,none": 0.5, "acc_stderr,none": 0.1}`` as ``{"acc": {"value": 0.5, "stderr": 0.1}}``."""
    metrics = {}
    for key, value in values.items():
        name, comma, filtered = key.partition(",")
        if comma and not name.endswith("_stderr"):
            stderr = values.get(f"{name}_stderr,{filtered}")
            metrics[name if filtered == "none" else key] = {"value": _number(value), "stderr": _number(stderr)}
    return metrics


def _number(value: Any) -> float | None:
    """None for lm-eval's "N/A"."""
    return float(value) if isinstance(value, int | float | np.number) else None


def _correct(samples: list[dict[str, Any]]) -> list[int] | None:
    ordered = sorted((s for s in samples if s["filter"] == samples[0]["filter"]), key=lambda s: s["doc_id"])
    metric = next((name for name in CORRECT if all(s.get(name) in (0, 1) for s in ordered)), None)
    return None if metric is None else [int(s[metric]) for s in ordered]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's notes, bars and prints off the console."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    pool = os.environ.get("DISABLE_MULTIPROC")
    logger.setLevel(logging.ERROR)
    os.environ["DISABLE_MULTIPROC"] = "1"  # resampling a few thousand numbers is not worth a pool of processes
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        if pool is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = pool


def _audible(progress: Progress) -> Progress:
    """``progress`` with the console as it is now, though it is called where the console is redirected."""
    out, err = sys.stdout, sys.stderr

    def report(kind: str, done: int, total: int) -> None:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            progress(kind, done, total)

    return report


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generators that tasks and sampling use, and give them back as they were."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])

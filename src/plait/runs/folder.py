"""A run's folder: whose it is, how far it came, where its model lies."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait.errors import TrainingError
from plait.files.manifest import fault
from plait.files.writing import read_back, write_json
from plait.fixtures import PREFIX, fixture_folder
from plait.provenance import provenance
from plait.runs.checkpoint import checkpoints, step_of
from plait.runs.config import RunConfig
from plait.sections import validated

_log = logging.getLogger("plait")

RUN_FILE = "run.json"
FINISHED_FILE = "finished.json"
RESULT_FILE = "result.json"
MODEL_FOLDER = "model"
DATA_FOLDER = "data"
STEPS = "training.steps"

#: Keys that may change between two calls on the same folder: they do not touch the weights.
FREE_KEYS = frozenset(
    {
        "name",
        "training.save_every",
        "training.keep",
        "training.log_every",
        "training.validate_every",
        "training.report_to",
        "training.parallel",
    }
)


@dataclass(frozen=True)
class Claim:
    """What a run's folder records of it, beside its configuration.

    Args:
        rows: sequences per optimiser step, over all processes.
        init_from: ``source`` and ``sha256`` of the weights that it started from, or None.
        raised: every time that its steps were raised: ``from``, ``to`` and the step ``at`` which it stood.
    """

    rows: int
    init_from: dict[str, str] | None = None
    raised: list[dict[str, int]] = field(default_factory=list)


def claim(
    folder: Path, config: RunConfig, rows: int, write: bool = True, init_from: dict[str, str] | None = None
) -> Claim:
    """Make ``folder`` this run's, or check that it already is; ``training.steps`` may have been raised.

    Args:
        folder: made if absent.
        config: the run.
        rows: sequences per optimiser step, over all processes, if it begins now.
        write: False only checks, as the other processes of a run do after the first.
        init_from: ``source`` and ``sha256`` of the weights to start from; None: as the run began.

    Returns:
        what the folder records.

    Raises:
        TrainingError: the folder holds another run; the message lists the keys that differ.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RUN_FILE
    if not path.exists() and (checkpoints(folder) or (folder / FINISHED_FILE).exists()):
        raise TrainingError(
            f"{folder} holds checkpoints but no {RUN_FILE}, so it is unknown which run they belong to; use "
            "another folder."
        )
    if not path.exists() and not write:
        raise TrainingError(f"The first process has not started a run in {folder}; its error says why.")
    recorded = _checked(folder, config, init_from) if path.exists() else Claim(rows, init_from)
    if write:
        write_run_file(folder, config, recorded)
    return recorded


def _checked(folder: Path, config: RunConfig, init_from: dict[str, str] | None) -> Claim:
    """What the folder records, if it is this run's."""
    begun = read_back(folder / RUN_FILE)
    old = dict(flat(begun["config"]))
    new = dict(flat(config.model_dump(mode="json")))
    keys = sorted(key for key in old.keys() | new.keys() if _binding(key) and old.get(key) != new.get(key))
    if keys:
        shown = ", ".join(f"{key} (there {old.get(key)!r}, here {new.get(key)!r})" for key in keys)
        raise TrainingError(
            f"{folder} belongs to another run. Different: {shown}. Use another folder, or delete this one."
        )
    steps, wanted = old[STEPS], new[STEPS]
    if wanted < steps:
        raise TrainingError(
            f"{folder}: {STEPS} = {wanted} is less than the {steps} of this run, and steps can only be raised. Write "
            f"{steps} or more, or use another folder."
        )
    warm = begun.get("init_from")
    if init_from is not None and init_from["sha256"] != (warm or {}).get("sha256"):
        before = f"from the weights of {warm['source']}" if warm else "from the random weights of its seed"
        raise TrainingError(
            f"{folder} belongs to a run that started {before}, not from those of {init_from['source']}. Leave out "
            "--init-from to continue it, or use another folder."
        )
    raised = begun.get("raised", [])
    if wanted > steps:
        raised = [*raised, {"from": steps, "to": wanted, "at": steps_done(folder)}]
    return Claim(begun["rows_per_step"], warm, raised)


def steps_done(folder: Path) -> int:
    """Optimiser steps whose outcome a run's folder keeps."""
    steps = [step_of(path) for path in checkpoints(folder)]
    if (folder / FINISHED_FILE).exists():
        steps.append(read_back(folder / FINISHED_FILE)["steps"])
    return max(steps, default=0)


def kept_result(folder: Path, config: RunConfig) -> dict[str, Any] | None:
    """What was measured of a finished run, if it is what ``config`` asks for and the model is still whole.

    Args:
        folder: of the run.
        config: the run.

    Raises:
        TrainingError: the folder holds another run.
    """
    needed = (RUN_FILE, FINISHED_FILE, RESULT_FILE, MODEL_FOLDER)
    if not all((folder / name).exists() for name in needed):
        return None
    claim(folder, config, rows=0, write=False)
    try:
        steps, result = read_back(folder / FINISHED_FILE)["steps"], read_back(folder / RESULT_FILE)
    except TrainingError as error:
        _log.warning("%s. The run is measured again.", str(error).partition(";")[0])
        return None
    wanted = config.model_dump(mode="json")
    measured = result["config"]["evaluate"] == wanted["evaluate"] and result["config"]["training"]["steps"] == steps
    if steps < config.training.steps or not measured or fault(folder / MODEL_FOLDER) is not None:
        return None
    kept: dict[str, Any] = result
    return kept


def write_run_file(folder: Path, config: RunConfig, recorded: Claim | None = None) -> None:
    """Write the resolved configuration, the versions that it runs with, and in a run's folder what it records."""
    content: dict[str, Any] = {"config": config.model_dump(mode="json"), **provenance()}
    if recorded is not None:
        content["rows_per_step"] = recorded.rows
        if recorded.init_from is not None:
            content["init_from"] = recorded.init_from
        if recorded.raised:
            content["raised"] = recorded.raised
    write_json(folder / RUN_FILE, content, sealed=True)


def read_run_file(folder: Path) -> RunConfig | None:
    """The configuration of a run's folder or of a model saved by one; None when there is none."""
    path = folder / RUN_FILE
    return validated(RunConfig, read_back(path)["config"], str(path)) if path.exists() else None


def model_folder(path: str) -> str:
    """The model that ``path`` names: a shipped one (``fixture:NAME``), of a finished run its ``model``, else ``path``.

    Raises:
        OptionError: no such fixture.
        TrainingError: a run that has not finished; the message names its last checkpoint.
    """
    if path.startswith(PREFIX):
        return str(fixture_folder(path.removeprefix(PREFIX)))
    folder = Path(path)
    if not (folder / RUN_FILE).exists() or (folder / "config.json").exists():
        return path
    if (folder / MODEL_FOLDER).exists():
        return str(folder / MODEL_FOLDER)
    saved = checkpoints(folder)
    fix = f"use its last checkpoint, {saved[-1]}, or train it to the end" if saved else "train it to the end"
    raise TrainingError(f"The run in {folder} has not finished: {fix}.")


def _binding(key: str) -> bool:
    return key not in FREE_KEYS and key != STEPS and not key.startswith("evaluate.")


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by dotted key; an empty mapping has none."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

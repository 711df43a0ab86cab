"""A run's folder: whose it is, how far it came, where its model lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from plait.errors import TrainingError
from plait.fixtures import PREFIX, fixture_folder
from plait.training.checkpoint import checkpoints, read_json, write_json
from plait.training.config import RunConfig, validated

RUN_FILE = "run.json"
FINISHED_FILE = "finished.json"
MODEL_FOLDER = "model"
DATA_FOLDER = "data"

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


def claim(folder: Path, config: RunConfig, rows: int, write: bool = True) -> int:
    """Make ``folder`` this run's, or check that it already is.

    Args:
        folder: made if absent.
        config: the run.
        rows: sequences per optimiser step, over all processes, if it begins now.
        write: False only checks, as the other processes of a run do after the first.

    Returns:
        The sequences per step that it began with.

    Raises:
        TrainingError: the folder holds another run; the message lists the keys that differ.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RUN_FILE
    if not path.exists() and (checkpoints(folder) or (folder / FINISHED_FILE).exists()):
        raise TrainingError(
            f"{folder} holds checkpoints but no {RUN_FILE}, so whose they are is unknown; use another folder."
        )
    if path.exists():
        begun = read_json(path)
        rows = begun.get("rows_per_step", rows)
        old = dict(_flat(begun["config"]))
        new = dict(_flat(config.model_dump(mode="json")))
        keys = sorted(key for key in old.keys() | new.keys() if _binding(key) and old.get(key) != new.get(key))
        if keys:
            shown = ", ".join(f"{key} (there {old.get(key)!r}, here {new.get(key)!r})" for key in keys)
            raise TrainingError(
                f"{folder} belongs to another run. Different: {shown}. Use another folder, or delete this one."
            )
    elif not write:
        raise TrainingError(f"The first process has not begun a run in {folder}; its error says why.")
    if write:
        write_run_file(folder, config, rows)
    return rows


def write_run_file(folder: Path, config: RunConfig, rows: int | None = None) -> None:
    """Write the resolved configuration, the versions that it runs with, and in a run's folder its rows per step."""
    content = {"config": config.model_dump(mode="json"), "versions": versions()}
    write_json(folder / RUN_FILE, content | ({} if rows is None else {"rows_per_step": rows}))


def read_run_file(folder: Path) -> RunConfig | None:
    """The configuration of a run's folder or of a model saved by one; None when there is none."""
    path = folder / RUN_FILE
    return validated(RunConfig, read_json(path)["config"], str(path)) if path.exists() else None


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
    mend = f"use its last checkpoint, {saved[-1]}, or train it to the end" if saved else "train it to the end"
    raise TrainingError(f"The run in {folder} has not finished: {mend}.")


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    return {name: version(name) for name in ("plait", "torch", "transformers", "accelerate", "tokenizers", "numpy")}


def _binding(key: str) -> bool:
    return key not in FREE_KEYS and not key.startswith("evaluate.")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by dotted key; an empty mapping has none."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

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
    }
)


def claim(folder: Path, config: RunConfig) -> None:
    """Make ``folder`` this run's, or check that it already is.

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
        old = dict(_flat(read_json(path)["config"]))
        new = dict(_flat(config.model_dump(mode="json")))
        keys = sorted(key for key in old.keys() | new.keys() if _binding(key) and old.get(key) != new.get(key))
        if keys:
            shown = ", ".join(f"{key} (there {old.get(key)!r}, here {new.get(key)!r})" for key in keys)
            raise TrainingError(
                f"{folder} belongs to another run. Different: {shown}. Use another folder, or delete this one."
            )
    write_run_file(folder, config)


def write_run_file(folder: Path, config: RunConfig) -> None:
    """Write the resolved configuration and the versions that it runs with."""
    write_json(folder / RUN_FILE, {"config": config.model_dump(mode="json"), "versions": versions()})


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

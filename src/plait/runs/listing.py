"""The runs of a folder: how far each came, what it scored, and how two of them differ. Loads no tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from plait.errors import OptionError, PlaitError, TrainingError
from plait.files.locks import in_use
from plait.files.manifest import fault
from plait.files.writing import read_back
from plait.runs.checkpoint import checkpoints
from plait.runs.folder import FINISHED_FILE, MODEL_FOLDER, RESULT_FILE, RUN_FILE, flat, steps_done
from plait.runs.metrics import FILE as METRICS_FILE
from plait.runs.metrics import losses, read_metrics

#: Kinds of what a run was trained on -> what is shown of them, the mean of their first scores.
_SHOWN = {"text": "bits_per_byte", "task": "accuracy"}


@dataclass(frozen=True)
class RunSummary:
    """One run.

    Args:
        name: of its folder.
        folder: where it is.
        model: mixer, ratio and size in words.
        steps, total: optimiser steps done, and asked for.
        state: ``running``, ``finished``, ``stopped`` (can be gone on with) or ``damaged``.
        why: what is damaged.
        loss: last logged training loss, in nats.
        bits_per_byte: on held-out text.
        accuracy: mean over the tasks that it was trained on, 0 to 1.
        tokens, seconds: of training, over all resumptions; None before a run has ended.
        config: the resolved configuration.
    """

    name: str
    folder: str
    model: str = ""
    steps: int = 0
    total: int = 0
    state: str = "damaged"
    why: str = ""
    loss: float | None = None
    bits_per_byte: float | None = None
    accuracy: float | None = None
    tokens: int | None = None
    seconds: float | None = None
    config: dict[str, Any] = field(default_factory=dict, repr=False)

    def record(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self)


def find_runs(folder: Path) -> list[Path]:
    """Folders of runs: ``folder`` itself, those directly in it, or the trials of a study.

    Raises:
        OptionError: there is no such folder.
    """
    if not folder.is_dir():
        raise OptionError(f"There is no folder {folder}.")
    if (folder / RUN_FILE).exists():
        return [folder]
    folders = [path.parent for pattern in ("*", "trials/*") for path in folder.glob(f"{pattern}/{RUN_FILE}")]
    return sorted(path for path in folders if not path.name.startswith("."))


def summarise(folder: Path, *, verify: bool = False) -> RunSummary:
    """How far a run came and what it scored.

    Args:
        folder: of the run.
        verify: read every file of model and checkpoint and compare hashes, instead of sizes only.

    Raises:
        OptionError: the folder holds no run.
    """
    if not (folder / RUN_FILE).exists():
        raise OptionError(f"{folder} holds no run: it has no {RUN_FILE}.")
    known: dict[str, Any] = {"name": folder.resolve().name, "folder": str(folder)}
    try:
        known |= _settings(folder)
        known |= _progress(folder)
        state = _state(folder, known["total"], verify)
        known |= _scores(folder)
    except PlaitError as error:
        return RunSummary(**known, state="damaged", why=str(error))
    return RunSummary(**known, **state)


def describe(model: Mapping[str, Any]) -> str:
    """A ``model`` section in words: ``gla 3:1, 4 layers of 128``."""
    plan = model.get("layer_types")
    if plan:
        counts = " + ".join(f"{plan.count(name)} {name}" for name in dict.fromkeys(plan))
        return f"{counts}, {len(plan)} layers of {model['hidden_size']}"
    return (
        f"{model.get('mixer')} {model.get('ratio')}, {model.get('num_hidden_layers')} layers of {model['hidden_size']}"
    )


def differences(runs: Sequence[RunSummary]) -> dict[str, list[Any]]:
    """Settings in which runs differ, by dotted key, with the value of each run; None where a run has none."""
    flats = [dict(flat(run.config)) for run in runs]
    keys = sorted({key for values in flats for key in values})
    table = {key: [values.get(key) for values in flats] for key in keys}
    return {key: values for key, values in table.items() if any(value != values[0] for value in values)}


class _Fields(BaseModel):
    """Fields that are read here; files have more."""

    model_config = ConfigDict(extra="ignore", strict=True)


class _Training(_Fields):
    steps: int


class _Model(_Fields):
    hidden_size: int
    layer_types: list[str] | None = None
    mixer: str | None = None
    ratio: str | None = None
    num_hidden_layers: int | None = None


class _Config(_Fields):
    model: _Model
    training: _Training


class _RunFile(_Fields):
    config: _Config


class _FinishedFile(_Fields):
    steps: int
    tokens: int
    seconds: float


class _Score(_Fields):
    score: float


class _Measured(_Fields):
    kind: str
    trained: bool
    scores: list[_Score]


class _Evaluation(_Fields):
    results: list[_Measured]


class _ResultFile(_Fields):
    evaluation: _Evaluation


class _Loss(_Fields):
    loss: float | None


def _read(path: Path, kind: type[_Fields]) -> dict[str, Any]:
    """The content of a file that has the fields of ``kind``.

    Raises:
        TrainingError: it is damaged, or has other fields; names the file and the field.
    """
    content = read_back(path)
    _check(content, kind, path.name)
    found: dict[str, Any] = content
    return found


def _check(content: Any, kind: type[_Fields], where: str) -> None:
    try:
        kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = f"its field {'.'.join(map(str, first['loc']))!r}" if first["loc"] else "its content"
        wrong = "is missing" if first["type"] == "missing" else f"is wrong ({first['msg']})"
        raise TrainingError(f"{where} is of another version or another program: {field} {wrong}.") from None


def _settings(folder: Path) -> dict[str, Any]:
    config = _read(folder / RUN_FILE, _RunFile)["config"]
    return {"config": config, "total": config["training"]["steps"], "model": describe(config["model"])}


def _progress(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if (folder / FINISHED_FILE).exists():
        done = _read(folder / FINISHED_FILE, _FinishedFile)
        found |= {"tokens": done["tokens"], "seconds": done["seconds"]}
    logged = losses(folder)
    last = logged[-1][1] if logged else None
    _check({"loss": last}, _Loss, METRICS_FILE)
    return {"steps": steps_done(folder), "loss": last, **found}


def _scores(folder: Path) -> dict[str, Any]:
    if not (folder / RESULT_FILE).exists():
        return {}
    results = [one for one in _read(folder / RESULT_FILE, _ResultFile)["evaluation"]["results"] if one["trained"]]
    firsts = {
        kind: [one["scores"][0]["score"] for one in results if one["kind"] == kind and one["scores"]] for kind in _SHOWN
    }
    return {shown: sum(values) / len(values) for kind, shown in _SHOWN.items() if (values := firsts[kind])}


def _state(folder: Path, total: int, verify: bool) -> dict[str, Any]:
    if in_use(folder):
        records = read_metrics(folder)
        return {"state": "running", **({"why": f"at step {records[-1]['step']:,}"} if records else {})}
    if (folder / FINISHED_FILE).exists() and read_back(folder / FINISHED_FILE)["steps"] >= total:
        model = folder / MODEL_FOLDER
        wrong = fault(model, content=verify) if model.exists() else "it is missing"
        return {"state": "damaged", "why": f"model: {wrong}"} if wrong else {"state": "finished"}
    saved = [(path, fault(path, content=verify)) for path in checkpoints(folder)]
    if saved and all(wrong for _, wrong in saved):
        path, wrong = saved[-1]
        return {"state": "damaged", "why": f"{path.name}: {wrong}"}
    damaged = [f"{path.name}: {wrong}" for path, wrong in saved if wrong]
    return {"state": "stopped", "why": f"damaged {damaged[-1]}" if damaged else ""}

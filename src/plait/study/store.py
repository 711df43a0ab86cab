"""Where a study keeps its files: ``study.json`` and one folder per trial."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from plait.data.folders import only_writer
from plait.errors import StudyError, TrainingError
from plait.files.writing import clean, read_back, write_json
from plait.runs.checkpoint import DAMAGED, checkpoints
from plait.runs.metrics import read_metrics
from plait.study.file import StudyFile, parse_study
from plait.study.trials import Trial, trials

STUDY, CONFIG, RESULT, ERROR, LOG, LOCK = "study.json", "config.json", "result.json", "error.json", "log.txt", "lock"

_log = logging.getLogger("plait")


class Store:
    """The folder of one study.

    Args:
        folder: ``runs/NAME`` or another place.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write_study(self, study: StudyFile, source: str, command: str) -> None:
        """Record what was asked for, so that the folder can be reported without the file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"source": source, "command": command, "study": study.model_dump(mode="json")}
        content["created"] = datetime.now(UTC).isoformat(timespec="seconds")
        with only_writer(self.folder / STUDY):
            clean(self.folder)  # of a call that was killed while it wrote here
            write_json(self.folder / STUDY, content, sealed=True)

    def read_study(self) -> tuple[StudyFile, dict[str, Any]]:
        """The study and the record around it.

        Raises:
            StudyError: the folder holds no study.
        """
        record = self.record()
        return parse_study(record["study"], str(self.folder / STUDY)), record

    def record(self) -> dict[str, Any]:
        """What :meth:`write_study` wrote.

        Raises:
            StudyError: the folder holds no study.
        """
        path = self.folder / STUDY
        if not path.is_file():
            raise StudyError(
                f"{self.folder} holds no study ({STUDY} is missing); run 'plait study run FILE.yaml' first."
            )
        content: dict[str, Any] = _read(path)
        return content

    def trials(self) -> list[Trial]:
        """The trials of the recorded study."""
        study, record = self.read_study()
        return trials(study, record["source"])

    def path(self, trial: Trial) -> Path:
        """Folder of a trial."""
        return self.folder / "trials" / trial.hash

    def result(self, trial: Trial) -> dict[str, Any] | None:
        """What a finished trial measured, else None."""
        path = self.path(trial) / RESULT
        return _read(path) if path.is_file() else None

    def set_aside_damaged(self, trials: Sequence[Trial]) -> None:
        """Rename results and errors that cannot be read, with a warning, so that their trials are run again."""
        for trial in trials:
            for read, name in ((self.result, RESULT), (self.error, ERROR)):
                try:
                    read(trial)
                except StudyError as error:
                    path = self.path(trial) / name
                    os.replace(path, path.with_name(f"{DAMAGED}-{name}"))
                    _log.warning("%s It is now %s-%s.", error, DAMAGED, name)

    def begin(self, trial: Trial) -> None:
        """Prepare a trial's folder for a run."""
        self.path(trial).mkdir(parents=True, exist_ok=True)
        clean(self.path(trial))
        write_json(self.path(trial) / CONFIG, trial.record(), sealed=True)
        (self.path(trial) / ERROR).unlink(missing_ok=True)

    def finish(self, trial: Trial, content: dict[str, Any]) -> None:
        """Write a trial's result; the file appears whole or not at all."""
        write_json(self.path(trial) / RESULT, {**content, "config": trial.record(), "seed": trial.seed}, sealed=True)

    def error(self, trial: Trial) -> dict[str, Any] | None:
        """Why a trial failed, or None."""
        path = self.path(trial) / ERROR
        return _read(path) if path.is_file() else None

    def fail(self, trial: Trial, error: str, details: str = "", killed: bool = False) -> None:
        """Record that a trial failed; its log and checkpoints stay.

        Args:
            trial: the trial.
            error: what went wrong, in a line.
            details: the traceback.
            killed: its process was ended from outside, so the next run goes on with it.
        """
        write_json(self.path(trial) / ERROR, {"error": error, "details": details, "killed": killed}, sealed=True)

    def state(self, trial: Trial) -> str:
        """``done``, ``running``, ``failed``, ``stopped`` (has a checkpoint or was killed) or ``waiting``."""
        if self.result(trial) is not None:
            return "done"
        if self.running(trial):
            return "running"
        error = self.error(trial)
        if error is not None:
            return "stopped" if error["killed"] else "failed"
        return "stopped" if checkpoints(self.path(trial)) else "waiting"

    def lock(self, trial: Trial) -> FileLock:
        """The lock that a process holds while it runs the trial; the system frees it when the process ends."""
        self.path(trial).mkdir(parents=True, exist_ok=True)
        return FileLock(self.path(trial) / LOCK, timeout=0)

    def running(self, trial: Trial) -> bool:
        """Whether some process holds the trial's lock."""
        if not (self.path(trial) / LOCK).exists():
            return False
        try:
            with self.lock(trial):
                return False
        except Timeout:
            return True

    def step(self, trial: Trial) -> int:
        """Last logged step of a trial."""
        records = read_metrics(self.path(trial))
        return int(records[-1]["step"]) if records else 0


def _read(path: Path) -> Any:
    try:
        return read_back(path)
    except OSError as error:
        raise StudyError(f"{path} cannot be read ({error.strerror}).") from None
    except TrainingError as error:
        why = str(error).partition(";")[0]
        raise StudyError(f"{why}; 'plait study run' sets it aside and runs its trial again.") from None

"""Where the trials of a cluster without a shared file system keep what outlives their machine.

Any file system that fsspec knows. Of each trial there is::

    trials/HASH/
      latest.json          marker: the snapshot that is whole, its files and their sizes
      snapshot-NAME/       last checkpoint (or the finished model), metrics, log
      lease.json           who runs the trial now
      result.json          written last; error.json, log.txt, metrics.jsonl, config.json beside it

A snapshot is uploaded under a name that nothing else has and then named by the marker, so whoever is killed at
whatever moment leaves the marker on a whole one.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from plait.errors import OptionError, StudyError
from plait.files import decode, parse_json
from plait.files.writing import PARTIAL
from plait.runs import metrics
from plait.runs.checkpoint import checkpoints
from plait.runs.folder import FINISHED_FILE, MODEL_FOLDER, RUN_FILE
from plait.study.store import CONFIG, ERROR, LOG, RESULT

LATEST, LEASE = "latest.json", "lease.json"
#: What people read of a trial, in the order in which it is written.
RECORDS = (CONFIG, metrics.FILE, LOG, ERROR)

#: Seconds without a sign of life after which another run takes a trial over, and between two signs.
LEASE_SECONDS, RENEWAL_SECONDS = 30.0, 5.0


class Storage:
    """The trials of one study in a place that every machine reaches.

    Args:
        url: such as ``s3://bucket/study`` or ``file:///mnt/study``.

    Raises:
        OptionError: the protocol is unknown, its package is not installed, or it is not shared by machines.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        protocol = url.partition("://")[0] if "://" in url else "file"
        if protocol == "memory":
            raise OptionError(f"storage {url!r}: memory is not shared by processes; use file://, s3:// or another.")
        try:
            self.files, self.root = fsspec.core.url_to_fs(url)
        except ValueError as error:
            raise OptionError(f"storage {url!r}: {error}; fsspec knows file://, s3://, gs://, ...") from None
        except ImportError as error:
            raise OptionError(f"storage {url!r}: {error}; every machine of the cluster needs that package.") from None

    def result(self, trial: str) -> dict[str, Any] | None:
        """What a finished trial measured, else None."""
        return self.read(trial, RESULT)

    def error(self, trial: str) -> dict[str, Any] | None:
        """Why a trial failed, or None."""
        return self.read(trial, ERROR)

    def push(self, trial: str, folder: Path) -> None:
        """Publish the newest checkpoint of a trial's folder, or its finished model.

        Args:
            trial: hash of the trial.
            folder: of the trial on this machine; it may go on changing.

        Raises:
            OSError: the storage does not answer; the marker is on the last whole snapshot.
        """
        name = f"snapshot-{uuid.uuid4().hex[:12]}"
        staged = folder.with_name(f"{PARTIAL}-{folder.name}-{name}")
        try:
            sizes = _freeze(folder, staged)
            for file in sizes:
                self._put(staged / file, f"{trial}/{name}/{file}")
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        before = self.read(trial, LATEST)
        self.write(trial, LATEST, {"snapshot": name, "files": sizes})
        if before is not None:
            self.remove(f"{trial}/{before['snapshot']}")

    def pull(self, trial: str, folder: Path) -> bool:
        """Fetch the last snapshot into a trial's folder; False where there is none.

        Raises:
            StudyError: a file of the snapshot is missing or has another size than when it was published.
        """
        latest = self.read(trial, LATEST)
        if latest is None:
            return False
        for file, size in latest["files"].items():
            target, source = folder / file, self._path(f"{trial}/{latest['snapshot']}/{file}")
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                self.files.get_file(source, str(target))
            except FileNotFoundError:
                raise StudyError(
                    f"{self.url}: {source} is missing; delete its folder to train that trial again."
                ) from None
            if target.stat().st_size != size:
                raise StudyError(
                    f"{self.url}: {source} has {target.stat().st_size} bytes and should have {size}; "
                    "delete its folder to train that trial anew."
                )
        return True

    def finish(self, trial: str, folder: Path) -> None:
        """Publish what people read of a trial, its result last."""
        for file in (*RECORDS, RESULT):
            if (folder / file).exists():
                self._put(folder / file, f"{trial}/{PARTIAL}-{file}")
                self.files.mv(self._path(f"{trial}/{PARTIAL}-{file}"), self._path(f"{trial}/{file}"))
            elif file == ERROR:
                self.remove(f"{trial}/{ERROR}")

    def fetch_records(self, trial: str, folder: Path) -> None:
        """Bring what people read of a trial into a folder; its result appears last and whole."""
        folder.mkdir(parents=True, exist_ok=True)
        for file in (*RECORDS, RESULT):
            partial = folder / f"{PARTIAL}-{file}"
            try:
                self.files.get_file(self._path(f"{trial}/{file}"), str(partial))
            except FileNotFoundError:
                partial.unlink(missing_ok=True)
                continue
            os.replace(partial, folder / file)

    def _path(self, file: str) -> str:
        return f"{self.root}/trials/{file}"

    def leased(self, trial: str) -> bool:
        """Whether somebody has the trial, or had it when they died."""
        return self.read(trial, LEASE) is not None

    def read(self, trial: str, file: str) -> Any:
        """Content of a JSON file of a trial, None where there is none."""
        where = f"{self.url}/trials/{trial}/{file}"
        try:
            content = self.files.cat_file(self._path(f"{trial}/{file}"))
        except FileNotFoundError:
            return None
        try:
            return parse_json(decode(content, Path(where), kind=StudyError), where, StudyError)
        except StudyError as error:
            raise StudyError(f"{error} Delete its folder, and the trial runs again.") from None

    def write(self, trial: str, file: str, content: Any) -> None:
        """Write JSON at once or not at all, which object stores do by themselves."""
        path = self._path(f"{trial}/{file}")
        local = isinstance(self.files, LocalFileSystem)
        target = f"{path}{PARTIAL}-{uuid.uuid4().hex[:12]}" if local else path
        self.files.makedirs(self._path(trial), exist_ok=True)
        self.files.pipe_file(target, json.dumps(content).encode())
        if local:
            self.files.mv(target, path)

    def _put(self, source: Path, file: str) -> None:
        target = self._path(file)
        self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
        self.files.put_file(str(source), target)

    def remove(self, file: str) -> None:
        """Delete a file or folder below ``trials``, if it is there."""
        try:
            self.files.rm(self._path(file), recursive=True)
        except FileNotFoundError:
            return  # somebody else was first


def newest(folder: Path) -> str | None:
    """What of a trial's folder is worth publishing: its finished model, else its last checkpoint, else nothing."""
    if (folder / FINISHED_FILE).exists():
        return MODEL_FOLDER
    saved = checkpoints(folder)
    return saved[-1].name if saved else None


def _freeze(folder: Path, staged: Path) -> dict[str, int]:
    """Link what a snapshot holds into another folder, where the training process cannot delete it.

    Returns:
        Sizes in bytes by relative path.
    """
    while (name := newest(folder)) is not None:
        shutil.rmtree(staged, ignore_errors=True)
        try:
            shutil.copytree(folder / name, staged / name, copy_function=os.link)
        except (FileNotFoundError, shutil.Error):  # the training process has just replaced it by a newer one
            continue
        break
    staged.mkdir(parents=True, exist_ok=True)
    loose: Sequence[str] = (
        (RUN_FILE, metrics.FILE, LOG, FINISHED_FILE) if name == MODEL_FOLDER else (RUN_FILE, metrics.FILE, LOG)
    )
    for file in loose:
        if (folder / file).exists():
            shutil.copyfile(folder / file, staged / file)
    return {str(file.relative_to(staged)): file.stat().st_size for file in staged.rglob("*") if file.is_file()}


class Lease:
    """Keeps two runs from training one trial at once; a holder that shows no sign of life loses it.

    Nobody's clock is compared with another's: a lease has ended when its content has not changed for a while. A holder
    that was away for so long that another took over finds ``lost`` set.

    Args:
        storage: of the study.
        trial: hash of the trial.
        run: names the run of ``plait study run``; within one, Ray says when a holder is dead.
    """

    def __init__(self, storage: Storage, trial: str, run: str) -> None:
        self.storage, self.trial, self.run = storage, trial, run
        self.holder = uuid.uuid4().hex
        self.lost = False
        self._ended = threading.Event()
        self._renewal = threading.Thread(target=self._renew, daemon=True)

    def acquire(self, patience: float = LEASE_SECONDS) -> bool:
        """Take the lease; False where another run shows signs of life.

        Args:
            patience: seconds without a sign after which a holder is taken for dead.
        """
        first = held = self._read()
        deadline = time.monotonic() + patience
        while held is not None and held["run"] != self.run:
            if held != first:
                return False
            if time.monotonic() > deadline:
                break
            time.sleep(min(1.0, patience / 4))
            held = self._read()
        self._sign(0)
        time.sleep(min(1.0, patience / 4))  # of two that took it at once the later one has it
        held = self._read()
        if held is None or held["holder"] != self.holder:
            return False
        self._renewal.start()
        return True

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._renewal.join()
        held = self._read()
        if held is not None and held["holder"] == self.holder:
            self.storage.remove(f"{self.trial}/{LEASE}")

    def _renew(self) -> None:
        count = 0
        while not self._ended.wait(RENEWAL_SECONDS):
            count += 1
            try:
                held = self._read()
                if held is not None and held["holder"] != self.holder:
                    self.lost = True
                    return
                self._sign(count)
            except OSError as error:  # the next sign may get through; a lost lease costs work, never results
                print(f"{self.storage.url}: the lease was not renewed: {error}", flush=True)

    def _read(self) -> Any:
        return self.storage.read(self.trial, LEASE)

    def _sign(self, count: int) -> None:
        self.storage.write(self.trial, LEASE, {"run": self.run, "holder": self.holder, "count": count})

"""One writer at a time in a folder; a second one is told who the first is.

The system frees a lock when its process ends, however it ends, so a dead process never keeps a folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from plait.errors import FolderInUse

LOCK, OWNER = ".lock", ".lock-owner.json"
#: Seconds to wait for a lock: :func:`in_use` holds it for an instant.
PATIENCE = 1.0

#: Folders that this process holds, with the thread that does: a call inside another one of the same thread may enter.
_held: dict[Path, int] = {}
_guard = threading.Lock()


@contextlib.contextmanager
def sole_writer(folder: Path, what: str) -> Iterator[None]:
    """Hold ``folder`` as its only writer.

    Args:
        folder: made if absent.
        what: is done there, for the message that others get: ``plait train``.

    Raises:
        FolderInUse: another process, or another thread of this one, holds it; the message names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key, thread = folder.resolve(), threading.get_ident()
    with _guard:
        inside = _held.get(key)
        if inside is None:
            lock = _acquired(folder, PATIENCE)
            _held[key] = thread
    if inside == thread:
        yield
        return
    if inside is not None:
        raise FolderInUse(_who(folder))
    try:
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "what": what}
        owner["since"] = datetime.now().isoformat(sep=" ", timespec="seconds")
        (folder / OWNER).write_text(json.dumps(owner), encoding="utf-8")
        yield
    finally:
        with _guard:
            del _held[key]
            (folder / OWNER).unlink(missing_ok=True)
            lock.release()


def in_use(folder: Path) -> bool:
    """Whether some process holds the folder."""
    if folder.resolve() in _held:
        return True
    if not (folder / OWNER).exists():
        return False
    try:
        _acquired(folder, 0).release()
    except FolderInUse:
        return True
    except OSError:  # nobody can write here, so nobody does
        return False
    return False


def _acquired(folder: Path, patience: float) -> BaseFileLock:
    lock = FileLock(folder / LOCK, timeout=patience, thread_local=False)
    try:
        lock.acquire(poll_interval=0.05)
    except Timeout:
        raise FolderInUse(_who(folder)) from None
    return lock


def _who(folder: Path) -> str:
    try:
        owner = json.loads((folder / OWNER).read_bytes())
        who = f"process {owner['pid']} on {owner['host']} ({owner['what']}, since {owner['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # it has the lock and has not yet written who it is
        who = "another process"
    return f"{folder} is in use by {who}. Wait until it ends, stop it, or use another folder."

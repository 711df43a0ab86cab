"""One writer at a time; the second is told who the first is, and a dead one keeps nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from plait.errors import FolderInUse
from plait.files.locks import LOCK, OWNER, in_use, sole_writer

HOLDER = (
    "import sys, time; from pathlib import Path; from plait.files.locks import sole_writer\n"
    "with sole_writer(Path(sys.argv[1]), 'training'): print('held', flush=True); time.sleep(600)"
)


def holder(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_who_holds_the_folder_and_a_dead_one_frees_it(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        assert in_use(tmp_path)
        said = rf"{tmp_path} is in use by process {process.pid} on {socket.gethostname()} \(training, since "
        with pytest.raises(FolderInUse, match=said), sole_writer(tmp_path, "measuring"):
            pass
        assert in_use(tmp_path)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert (tmp_path / OWNER).exists()  # the dead one could not remove it
    assert not in_use(tmp_path)
    with sole_writer(tmp_path, "training"):
        assert str(os.getpid()) in (tmp_path / OWNER).read_text()
    assert not (tmp_path / OWNER).exists()


def test_calls_inside_one_another_enter_and_another_thread_does_not(tmp_path: Path) -> None:
    refused: list[FolderInUse] = []

    def other() -> None:
        try:
            with sole_writer(tmp_path, "training"):
                pass
        except FolderInUse as error:
            refused.append(error)

    with sole_writer(tmp_path, "training"), sole_writer(tmp_path / ".." / tmp_path.name, "training"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert in_use(tmp_path)
    assert len(refused) == 1
    other()
    assert len(refused) == 1


def test_a_held_folder_whose_owner_is_not_known(tmp_path: Path) -> None:
    with sole_writer(tmp_path, "training"):
        (tmp_path / OWNER).write_text("{")
        thread = threading.Thread(target=lambda: seen.append(message(tmp_path)))
        seen: list[str] = []
        thread.start()
        thread.join()
    assert seen[0].startswith(f"{tmp_path} is in use by another process.")
    assert (tmp_path / LOCK).exists()


def message(folder: Path) -> str:
    with pytest.raises(FolderInUse) as caught, sole_writer(folder, "training"):
        pass
    return str(caught.value)

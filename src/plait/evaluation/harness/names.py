"""Names of lm-eval's tasks, read from its files: importing lm-eval itself takes many seconds."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from plait.errors import OptionError, nearest
from plait.extras import install_command
from plait.runs.config import EvaluateSection

#: Names of files that differ from lm-eval's name of the task.
FILES = {"openbookqa": "openbook_qa"}

_NAMED = re.compile(r"^[\"']?(?:task|group|tag)[\"']?:[ \t]*(.*?)[ \t\r]*$((?:\n[ \t]*- .*)*)", re.MULTILINE)


def check_names(names: Sequence[str], data_dir: Path | None = None) -> None:
    """Raise where a task is not there, without loading lm-eval or torch.

    A name that resembles none of those in lm-eval's files is let through: some are put together by lm-eval itself,
    which is asked before anything is measured.

    Args:
        names: of tasks or groups.
        data_dir: folder of jsonl files, one for each task; None: lm-eval's own tasks.

    Raises:
        OptionError: lm-eval is not installed, or there is no such task.
    """
    require_lm_eval()
    if data_dir is not None:
        known = folder_names(data_dir)
        for name in names:
            if name not in known:
                said = nearest(name, known) if known else " There are no jsonl files."
                raise OptionError(f"Task {name!r} has no file {FILES.get(name, name)}.jsonl in {data_dir}.{said}")
        return
    files = {Path(file).stem for _, file in _files()}
    for name in names:
        if name not in files and name not in known_names():
            hint = nearest(name, known_names())
            if hint.startswith(" Did"):
                raise OptionError(f"lm-eval has no task {name!r}.{hint}")


def check_section(section: EvaluateSection) -> None:
    """:func:`check_names` for what an ``evaluate`` section asks for."""
    for part in section.measure:
        if part.harness:
            check_names(part.harness, harness_folder(None if part.data_dir is None else Path(part.data_dir)))


def require_lm_eval() -> None:
    """Raise :class:`OptionError` where lm-eval is not installed."""
    if find_spec("lm_eval") is None:
        raise OptionError(f"Task sets of the harness need the package lm-eval: {install_command('harness')}")


def folder_names(folder: Path) -> list[str]:
    """lm-eval's names of the tasks whose rows are in a folder."""
    names = {file: name for name, file in FILES.items()}
    return [names.get(path.stem, path.stem) for path in sorted(folder.glob("*.jsonl"))]


def harness_folder(data_dir: Path | None) -> Path | None:
    """The data folder's ``harness``, or the data folder itself where it has none."""
    if data_dir is None:
        return None
    inside = data_dir / "harness"
    return inside if inside.is_dir() else data_dir


@cache
def known_names() -> frozenset[str]:
    """Tasks, groups and tags that the files of the installed lm-eval name."""
    names: set[str] = set()
    for folder, file in _files():
        text = Path(folder, file).read_text(encoding="utf-8", errors="replace")
        for first, further in _NAMED.findall(text):
            lines = [first, *(line.strip().removeprefix("-") for line in further.splitlines())]
            names |= {line.partition("#")[0].strip(" \t\"'") for line in lines}
    return frozenset(name for name in names if re.fullmatch(r"[\w.+-]+", name))


def _files() -> Iterator[tuple[str, str]]:
    """Folder and name of each of lm-eval's files in YAML; templates have other endings."""
    spec = find_spec("lm_eval")
    if spec is None or spec.submodule_search_locations is None:
        return
    for folder, _, files in os.walk(Path(spec.submodule_search_locations[0], "tasks")):
        yield from ((folder, file) for file in files if "yaml" in file or file.endswith(".yml"))

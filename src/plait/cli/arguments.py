"""What every command checks before it loads anything: names exist, files can be read, folders can be written to.

An argument of one name means the same in every command, so its check stands here once. A typo is told at once, not
after the seconds that torch takes to load, and a name that looks like a path is never looked for on the hub.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer

from plait import catalog
from plait.errors import OptionError, nearest
from plait.files import check_new_folder, quoted, regular_file

_FILES = (".yaml", ".yml")


def checked(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with its arguments checked first.

    Args:
        command: the function of a command.
    """

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        name = command.__module__.rpartition(".")[2]
        for key, value in arguments.items():
            _check_text(key, value)
            check = _CHECKS.get(f"{name}.{key}", _CHECKS.get(key))
            if check is not None and value not in (None, [], ()):
                check(value)
        command(**arguments)

    return run


def check_all(app: typer.Typer) -> None:
    """Let every command of ``app`` check its arguments first.

    Args:
        app: commands, registered.
    """
    for command in app.registered_commands:
        if command.callback is not None and not hasattr(command.callback, "__wrapped__"):
            command.callback = checked(command.callback)


def _check_text(key: str, value: Any) -> None:
    for item in value if isinstance(value, list | tuple) else [value]:
        if isinstance(item, float) and not math.isfinite(item):
            raise OptionError(f"--{key.replace('_', '-')} {item} must be a finite number.")
        text = str(item) if isinstance(item, Path) else item
        if not isinstance(text, str):
            continue
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise OptionError(
                f"--{key.replace('_', '-')}: the text is not UTF-8; set the terminal's encoding to UTF-8."
            ) from None
        if "\0" in text:
            raise OptionError(f"--{key.replace('_', '-')}: the text holds a zero byte; remove it.")


def _model(name: str) -> None:
    from plait.fixtures import PREFIX, fixture_folder

    if name.startswith(PREFIX):
        fixture_folder(name.removeprefix(PREFIX))
    elif not Path(name).is_dir():
        from plait.hub import check_name

        check_name(name)


def _model_or_file(name: str) -> None:
    if Path(name).suffix in _FILES:
        regular_file(Path(name), OptionError)
    else:
        _model(name)


def _named(*kinds: str) -> Callable[[Any], None]:
    """A check of names of the catalogue, one, a list, or with commas between."""

    def check(value: str | Iterable[str]) -> None:
        texts = [value] if isinstance(value, str) else list(value)
        known = [name for kind in kinds for name in catalog.names(kind)]
        for name in (part.strip() for text in texts for part in text.split(",")):
            if name and name not in known:
                raise OptionError(f"There is no {' or '.join(kinds)} {quoted(name)}.{nearest(name, known)}")

    return check


def _ratio(value: str | Iterable[str]) -> None:
    from plait.sections import parse_ratio

    for text in [value] if isinstance(value, str) else value:
        try:
            parse_ratio(text)
        except ValueError as error:
            raise OptionError(f"--ratio {quoted(text)}: {error}.") from None


def _seed(value: int) -> None:
    if not 0 <= value < 2**32:
        raise OptionError(f"--seed {quoted(value)} must be between 0 and {2**32 - 1}.")


def _file(value: str | Path) -> None:
    if str(value) != "-":
        regular_file(Path(value), OptionError)


def _folder(value: str | Path) -> None:
    from plait.runs.paths import check_folder

    check_folder(str(value), f"--data-dir {value}")


def _new_folder(value: str | Path) -> None:
    check_new_folder(Path(value), OptionError)


def _new_file(value: str | Path) -> None:
    path = Path(value)
    if path.is_dir():
        raise OptionError(f"{path} is a folder; name a file.")
    check_new_folder(path.parent, OptionError)


def _fixture(name: str) -> None:
    if name.endswith(_FILES):
        _file(name)


def _corpus(corpus: str) -> None:
    from plait.runs.paths import check_corpus

    check_corpus(corpus, f"--corpus {quoted(corpus)}")


def _data(source: str) -> None:
    """A corpus, a text file, a folder or a YAML file."""
    path = Path(source)
    if path.is_dir():
        return
    if path.exists() or path.is_symlink() or path.suffix in _FILES:
        regular_file(path, OptionError)
    else:
        from plait.runs.paths import check_corpus

        check_corpus(source, f"--data {quoted(source)}, which is no file or folder")


def _calibration_data(source: str) -> None:
    """``task:NAME`` or a text file."""
    if source.startswith("task:"):
        _named("task")(source.removeprefix("task:"))
    else:
        regular_file(Path(source), OptionError)


def _options(option: str) -> Callable[[Iterable[str]], None]:
    """A check of NAME=VALUE texts, under the option's name."""

    def check(texts: Iterable[str]) -> None:
        from plait.cli.options import key_values

        key_values(texts, option)

    return check


def _suite(text: str) -> None:
    for name in (part.strip() for part in text.split(",")):
        if name and name not in catalog.suites():
            raise OptionError(f"There is no suite {quoted(name)}.{nearest(name, catalog.suites())}")


_CHECKS: dict[str, Callable[[Any], None]] = {
    "model": _model,
    "explain.model": _model_or_file,
    "policy": _named("policy"),
    "policies": _named("policy"),
    "tasks": _named("task", "benchmark"),
    "suite": _suite,
    "recipe": _named("recipe"),
    "mixer": _named("mixer"),
    "probe.name": _named("probe"),
    "claim.name": _named("claim"),
    "fixture.name": _fixture,
    "ratio": _ratio,
    "seed": _seed,
    "config": _file,
    "file": _file,
    "prompt_file": _file,
    "text": _file,
    "scores": _file,
    "data": _data,
    "calibrate.data": _calibration_data,
    "corpus": _corpus,
    "data_dir": _folder,
    "out": _new_folder,
    "calibrate.out": _new_file,
    "plan.out": _new_file,
    "option": _options("option"),
    "policy_option": _options("policy-option"),
    "data_option": _options("data-option"),
}

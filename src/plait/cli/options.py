"""Options of commands that hold several values in one text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from plait.errors import OptionError
from plait.files import quoted


def key_values(texts: Iterable[str], option: str = "option") -> dict[str, Any]:
    """``NAME=VALUE`` texts as a mapping; values are read as in files: numbers, true, null, lists, text.

    Args:
        texts: what the user wrote.
        option: of the command line, for messages.

    Raises:
        OptionError: a text without an equals sign, a value that cannot be read, or a name twice.
    """
    from plait.sections import parse_yaml

    pairs: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise OptionError(f"--{option} {quoted(text)}: write NAME=VALUE.")
        if name in pairs:
            raise OptionError(f"--{option} {quoted(text)}: {name} is given twice; give it once.")
        pairs[name] = parse_yaml(value, f"--{option} {quoted(text)}")
    return pairs


def integers(text: str, option: str, least: int = 1) -> list[int]:
    """Whole numbers with commas between.

    Args:
        text: what the user wrote.
        option: of the command line, for messages.
        least: smallest number allowed.

    Raises:
        OptionError: anything else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) <= 12 and int(part) >= least for part in parts):
        raise OptionError(
            f"--{option} {quoted(text)}: write whole numbers of at least {least} separated by commas, such as 4,8."
        )
    return [int(part) for part in parts]

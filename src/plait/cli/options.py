"""Options of commands that hold several values in one text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from plait.errors import OptionError


def key_values(texts: Iterable[str], option: str = "option") -> dict[str, Any]:
    """``NAME=VALUE`` texts as a mapping; values are read as YAML (numbers, true, null, lists), and 1e-3 is a number.

    Args:
        texts: what the user wrote.
        option: of the command line, for messages.

    Raises:
        OptionError: a text without an equals sign.
    """
    pairs: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise OptionError(f"--{option} {text!r}: write NAME=VALUE.")
        read = yaml.safe_load(value)
        pairs[name.strip()] = [_number(item) for item in read] if isinstance(read, list) else _number(read)
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
    if not all(part.isdecimal() and int(part) >= least for part in parts):
        raise OptionError(
            f"--{option} {text!r}: write whole numbers of at least {least} with commas between, such as 4,8."
        )
    return [int(part) for part in parts]


def _number(value: Any) -> Any:
    """YAML takes ``1e-3`` for text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value

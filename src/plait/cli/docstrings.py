"""Reads Google-style docstrings, so that help on options stands once: beside the code."""

from __future__ import annotations

import inspect
import re
import textwrap

_SECTION = re.compile(r"^(\w[\w ]*):$")
_ENTRY = re.compile(r"^(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: \([^)]*\))?: (?P<text>.*)$")


def sections(documentation: str | None) -> dict[str, str]:
    """A docstring by section; the text before the first ``Title:`` line stands under ``""``."""
    texts: dict[str, list[str]] = {"": []}
    current = texts[""]
    for line in inspect.cleandoc(documentation or "").splitlines():
        title = _SECTION.match(line)
        if title:
            current = texts.setdefault(title[1], [])
        else:
            current.append(line)
    return {title: textwrap.dedent("\n".join(lines)).strip() for title, lines in texts.items()}


def argument_texts(documentation: str | None) -> dict[str, str]:
    """Description of each argument of the ``Args`` section; ``a, b: text`` describes both."""
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in sections(documentation).get("Args", "").splitlines():
        entry = _ENTRY.match(line)
        if entry and not line.startswith(" "):
            names = [name.lstrip("*") for name in entry["names"].split(", ")]
            texts.update(dict.fromkeys(names, entry["text"].strip()))
        else:
            for name in names:
                texts[name] = f"{texts[name]} {line.strip()}".strip()
    return texts

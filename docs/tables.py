"""Writes what the documentation repeats from the code: the table of methods, the lists of public names.

``python docs/tables.py`` rewrites the text between the markers; a test fails when that text is out of date.
"""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from pathlib import Path

from plait import catalog

ROOT = Path(__file__).parent.parent
PACKAGES = ("plait.ops", "plait.nn", "plait.mixers", "plait.models", "plait.data", "plait.training", "plait.evaluation")


def methods_table() -> str:
    """The catalogue as a Markdown table; methods of other packages, found by entry point, are left out."""
    lines = ["| name | kind | method | paper | decoding state |", "| --- | --- | --- | --- | --- |"]
    for method in catalog.methods():
        if method.target.startswith("plait."):
            paper = f"[{method.paper}](https://arxiv.org/abs/{method.paper})"
            lines.append(f"| `{method.name}` | {method.kind} | {method.title} | {paper} | {method.state or '-'} |")
    return "\n".join(lines)


def names_of(package: str) -> str:
    """A section on one package: its summary and each public name with its documentation."""
    module = import_module(package)
    lines = []
    for name in module.__all__:
        directive = "autoclass" if inspect.isclass(getattr(module, name)) else "autofunction"
        lines.append(f".. {directive}:: {package}.{name}")
        if directive == "autoclass":
            lines.append("   :members:")
    summary = (module.__doc__ or "").partition("\n")[0]
    names = ", ".join(f"`{name}`" for name in module.__all__)
    body = "\n".join(lines)
    return f"## {package}\n\n{summary}\nNames: {names}.\n\n```{{eval-rst}}\n{body}\n```"


def sections() -> dict[Path, dict[str, str]]:
    """Generated text by file and marker."""
    return {
        ROOT / "README.md": {"methods": methods_table()},
        ROOT / "docs" / "api.md": {"names": "\n\n".join(map(names_of, PACKAGES))},
    }


def filled(text: str, marker: str, body: str) -> str:
    """``text`` with ``body`` between ``<!-- marker -->`` and ``<!-- end of marker -->``."""
    start, end = f"<!-- {marker} -->", f"<!-- end of {marker} -->"
    before, found_start, rest = text.partition(start)
    _, found_end, after = rest.partition(end)
    if not (found_start and found_end):
        raise SystemExit(f"The markers of {marker!r} are missing.")
    return f"{before}{start}\n{body}\n{end}{after}"


def main() -> None:
    for path, parts in sections().items():
        text = path.read_text(encoding="utf-8")
        for marker, body in parts.items():
            text = filled(text, marker, body)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    sys.exit(main())

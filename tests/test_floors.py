"""The house has floors: a package imports from those below it, and from those beside it in one direction."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest

import plait

ROOT = Path(plait.__file__).parent
#: From the ground up; names in one line stand beside each other and may use those before them. ``plait`` is what
#: ``import plait`` offers.
FLOORS = [
    "errors, files, sections, names, extras, provenance, hub, options, devices",
    "catalog, statistics, drawing, fixtures, runs",
    "ops",
    "nn",
    "mixers",
    "models",
    "runtime",
    "modalities, data, distributed, policies",
    "training, benchmarks, timing",
    "evaluation",
    "probes, conversion, planner",
    "study",
    "report, claims",
    "plait",
    "cli",
    "__main__",
]
ORDER = [name for floor in FLOORS for name in floor.split(", ")]

Graph = Mapping[str, set[str]]


def sources() -> dict[str, str]:
    """The text of every module of plait by its dotted name; the code that a saved model's folder carries is data."""
    paths = [path for path in sorted(ROOT.rglob("*.py")) if path.name != "plait_model.py"]
    names = {path: ".".join(("plait", *path.relative_to(ROOT).with_suffix("").parts)) for path in paths}
    return {name.removesuffix(".__init__"): path.read_text(encoding="utf-8") for path, name in names.items()}


def imports(text: str, modules: Mapping[str, str]) -> set[str]:
    """The modules that a text imports, wherever the import stands: in a function, or for a reader of types alone."""
    wanted: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not read here"
            wanted |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            wanted |= {alias.name for alias in node.names}
    return {module for name in wanted if (module := _module(name, modules)) is not None}


def _module(name: str, modules: Mapping[str, str]) -> str | None:
    """``plait.files.quoted`` stands in the module ``plait.files``."""
    parts = name.split(".")
    return next((".".join(parts[:n]) for n in (len(parts), len(parts) - 1) if ".".join(parts[:n]) in modules), None)


def graph(modules: Mapping[str, str]) -> dict[str, set[str]]:
    return {name: imports(text, modules) - {name} for name, text in modules.items()}


def package(module: str) -> str:
    """``plait`` for the root itself."""
    return module.split(".")[1] if "." in module else module


def packages(files: Graph) -> dict[str, set[str]]:
    between: dict[str, set[str]] = {}
    for name, others in files.items():
        between.setdefault(package(name), set()).update({package(other) for other in others} - {package(name)})
    return between


def circle(edges: Graph) -> list[str]:
    """A way along the edges that comes back to its start; empty where there is none."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name not in done:
            for other in sorted(edges.get(name, ())):
                found = walk(other, [*way, name])
                if found:
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(edges) if (found := walk(name, []))), [])


def test_nothing_is_imported_from_above() -> None:
    files = graph(sources())
    assert {package(name) for name in files} <= set(ORDER), "a package has no floor yet"
    upward = [
        f"{name} imports {other}"
        for name, others in files.items()
        for other in sorted(others)
        if ORDER.index(package(other)) > ORDER.index(package(name))
    ]
    assert not upward


def test_there_is_no_circle_between_packages() -> None:
    assert not circle(packages(graph(sources())))


def test_there_is_no_circle_between_files() -> None:
    assert not circle(graph(sources()))


@pytest.mark.parametrize(
    "line",
    [
        "from plait.study.summary import Verdict",
        "from plait.study import summary",
        "import plait.study.summary",
        "if TYPE_CHECKING:\n    from plait.study.summary import Verdict",
        "def f():\n    from plait.study.summary import Verdict",
    ],
)
def test_an_import_is_seen_wherever_it_stands(line: str) -> None:
    modules = {"plait.ops.scan": line, "plait.study": "", "plait.study.summary": "from plait.ops import scan"}
    files = graph(modules | {"plait.ops": ""})
    assert files["plait.ops.scan"] == {"plait.study.summary"}
    assert circle(files) == ["plait.ops.scan", "plait.study.summary", "plait.ops.scan"]
    assert circle(packages(files)) == ["ops", "study", "ops"]

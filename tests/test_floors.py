"""The house has floors: a package imports from those below it, and from those beside it in one direction."""

from __future__ import annotations

import ast
from pathlib import Path

import plait

ROOT = Path(plait.__file__).parent
#: From the ground up; names in one line stand beside each other and may use those before them.
FLOORS = [
    "errors, files, hub, sections, extras, devices, options, statistics, catalog, storage, fixtures, runs",
    "drawing",
    "ops",
    "nn",
    "mixers",
    "distributed",
    "models",
    "runtime",
    "data, policies",
    "training, benchmarks",
    "evaluation",
    "timing, probes, conversion",
    "planner, study, report",
    "claims",
    "cli",
]
#: Edges against the order, each with its reason.
ALLOWED = {
    ("data", "training"),  # types of the configuration, for the reader alone
    ("planner", "study"),  # the recall that a study measured
}


def imports(path: Path) -> set[str]:
    """Packages of plait that a file names in an import, wherever it stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "plait":
            found |= {alias.name for alias in node.names if (ROOT / alias.name).exists()}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("plait."):
            found.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("plait.")}
    return found


def test_nothing_is_imported_from_above() -> None:
    order = [name for floor in FLOORS for name in floor.split(", ")]
    upward = {}
    for path in sorted(ROOT.rglob("*.py")):
        package = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if package.startswith("__") or path.name == "plait_model.py":  # the latter is data: a saved model's folder
            continue
        assert package in order, f"{package} has no floor yet"
        for other in imports(path) - {package}:
            if order.index(other) > order.index(package) and (package, other) not in ALLOWED:
                upward[str(path.relative_to(ROOT))] = other
    assert not upward

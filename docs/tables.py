"""Writes what the documentation repeats from the code: the tables of methods, the lists of public names.

``python docs/tables.py`` rewrites the text between the markers; a test fails when that text is out of date.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

from plait import catalog
from plait.catalog import Method
from plait.claims import kept_evidence, load_claim
from plait.claims.page import claims_table
from plait.claims.page import page as claim_page
from plait.cli.app import COMMANDS
from plait.cli.output import quantity, size
from plait.drawing.lines import lines_svg
from plait.evaluation.fixtures import SCORES_FILE
from plait.fixtures import shipped
from plait.mixers import Dims

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "plait.options",
    "plait.ops",
    "plait.nn",
    "plait.mixers",
    "plait.models",
    "plait.models.heads",
    "plait.models.checkpoints",
    "plait.data",
    "plait.data.tasks",
    "plait.training",
    "plait.evaluation",
    "plait.evaluation.subject",
    "plait.evaluation.measurement",
    "plait.evaluation.score",
    "plait.evaluation.results",
    "plait.evaluation.trained",
    "plait.evaluation.suites",
    "plait.evaluation.tasks",
    "plait.evaluation.prompts",
    "plait.evaluation.texts",
    "plait.evaluation.decode",
    "plait.evaluation.run",
    "plait.evaluation.batching",
    "plait.evaluation.session",
    "plait.evaluation.compare",
    "plait.statistics.intervals",
    "plait.evaluation.language",
    "plait.benchmarks",
    "plait.evaluation.harness",
    "plait.fixtures",
    "plait.evaluation.fixtures",
    "plait.distributed",
    "plait.planner",
    "plait.policies",
    "plait.conversion",
    "plait.probes",
    "plait.claims",
)

#: Module, or package, of tasks or benchmarks -> their page in docs/tasks.
PAGES = {
    "plait.data.tasks.mqar": "recall",
    "plait.data.tasks.key_value": "recall",
    "plait.data.tasks.lag": "recall",
    "plait.data.tasks.niah": "niah",
    "plait.data.tasks.variable_tracking": "niah",
    "plait.data.tasks.mad": "mad",
    "plait.data.tasks.state_tracking": "state-tracking",
    "plait.data.tasks.word_problems": "state-tracking",
    "plait.data.tasks.list_ops": "long-range-arena",
    "plait.data.tasks.pixels": "long-range-arena",
    "plait.benchmarks.ruler": "ruler",
    "plait.benchmarks.needle": "needle",
    "plait.benchmarks.passkey": "passkey",
    "plait.benchmarks.based_recall": "recall-suite",
    "plait.benchmarks.key_value_words": "recall-suite",
    "plait.benchmarks.records": "recall-suite",
    "plait.benchmarks.longbench": "longbench",
}


#: Command -> the page that describes it; the others are described on the page of the table.
COMMAND_PAGES = {
    "train": "training",
    "runs": "training",
    "eval": "evaluation",
    "compare": "evaluation",
    "run": "policies",
    "calibrate": "policies",
    "frontier": "policies",
    "fixture": "fixtures",
    "convert": "conversion",
    "import": "checkpoints",
    "export": "checkpoints",
    "plan": "planner",
    "study": "study",
    "probe": "probes",
    "claim": "claims",
    "bench": "performance",
}


def methods(*kinds: str) -> list[Method]:
    """The catalogue's methods of these kinds; those of other packages, found by entry point, are left out."""
    return [method for kind in kinds for method in catalog.methods(kind) if method.target.startswith("plait.")]


def paper(number: str) -> str:
    """A link to an arXiv number, any other source as it stands, ``-`` for none."""
    return f"[{number}](https://arxiv.org/abs/{number})" if re.fullmatch(r"\d{4}\.\d{4,5}", number) else number or "-"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])


def mixers_table() -> str:
    """Every mixer, one a line."""
    rows = [[f"`{one.name}`", one.title, paper(one.paper), one.state] for one in methods("mixer")]
    return table(["mixer", "method", "paper", "decoding state"], rows)


def commands_table() -> str:
    """Every command, with the sentence of its help."""
    rows = []
    for name, (_, summary) in COMMANDS.items():
        page = COMMAND_PAGES.get(name)
        rows.append([f"`plait {name}`", summary, f"[{page}]({page}.md)" if page else "below"])
    return table(["command", "what it does", "more"], rows)


def described_table(kind: str) -> str:
    """Every probe or recipe, with the first sentence of its class."""
    rows = []
    for one in methods(kind):
        said = " ".join((one.load().__doc__ or "").partition("\n\n")[0].split()).replace("``", "`")
        rows.append([f"`{one.name}`", said, paper(one.paper) if one.paper else "plait's own"])
    return table([kind, "what it measures" if kind == "probe" else "what it does", "paper"], rows)


def mixer_costs_table() -> str:
    """Every mixer: what grows with the text, and what one layer costs at the width and length of the page."""
    dims, length = Dims(hidden_size=2048), 4096
    rows = []
    for method in methods("mixer"):
        kind = method.load()
        cost = kind.cost(dims, length, kind.Options())
        cells = [f"{quantity(cost.flops_decode)}FLOP", size(cost.state_bytes)]
        rows.append([f"`{method.name}`", method.title, paper(method.paper), method.state, method.work, *cells])
    return table(["mixer", "method", "paper", "state", "work", "one more token", "held"], rows)


def families_table() -> str:
    """Tasks and benchmarks, one page of their documentation a line."""
    families: dict[str, list[Method]] = {}
    for method in methods("task", "benchmark"):
        families.setdefault(page_of(method), []).append(method)
    rows = []
    for page, members in families.items():
        kind = {"task": "token ids", "benchmark": "words"}[members[0].kind]
        papers = dict.fromkeys(paper(one.paper) for one in members)
        names = ", ".join(f"`{one.name}`" for one in members)
        rows.append([f"[{title_of(page)}](docs/tasks/{page}.md)", names, kind, ", ".join(papers)])
    return table(["page", "names", "in", "papers"], rows)


def policies_table() -> str:
    """Every policy: what it does, which phases it saves work in, and whether its cache grows."""
    rows = []
    for one in methods("policy"):
        if one.paper:
            saves = " and ".join(one.load().reduces) or "nothing"
            rows.append([f"`{one.name}`", one.title, paper(one.paper), saves, one.state])
    return table(["policy", "method", "paper", "saves work in", "cache"], rows)


def measures_table(kind: str) -> str:
    """Every task or every benchmark, one a line, with the suites that measure it."""
    rows = []
    for one in methods(kind):
        suites = ", ".join(f"`{suite}`" for suite in one.suites) or "-"
        page = page_of(one)
        rows.append([f"`{one.name}`", one.title, paper(one.paper), suites, f"[{title_of(page)}](tasks/{page}.md)"])
    return table([kind, "asks", "paper", "suites", "page"], rows)


def scores_table() -> str:
    """What the shipped fixtures score, from the files beside their weights."""
    records = {
        name: json.loads((folder / SCORES_FILE).read_text(encoding="utf-8")) for name, folder in shipped().items()
    }
    rows = []
    for scores in zip(*(record["scores"] for record in records.values()), strict=True):
        name, _, options = scores[0]["name"].partition(" length=")
        cells = [f"{one['score']:.4g} ({one['low']:.4g} to {one['high']:.4g})" for one in scores]
        rows.append([f"`{name}`, {options.split()[0]} tokens", scores[0]["metric"], *cells])
    return table(["measured", "metric", *(f"`{name}`" for name in records)], rows)


def page_of(method: Method) -> str:
    """The page on a task or benchmark."""
    module = method.target.partition(":")[0]
    found = [page for place, page in PAGES.items() if module == place or module.startswith(f"{place}.")]
    if not found:
        raise SystemExit(f"{module} has no page: write one in docs/tasks and name it in PAGES of docs/tables.py.")
    return found[0]


def title_of(page: str) -> str:
    """The heading of a page in docs/tasks, up to its colon."""
    text = (ROOT / "docs" / "tasks" / f"{page}.md").read_text(encoding="utf-8")
    return text.partition("\n")[0].removeprefix("# ").partition(":")[0]


def public_names(module: ModuleType) -> list[str]:
    """``__all__``, or the classes and functions that the module defines, in their order."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
        and not name.startswith("_")
    ]


def names_of(package: str) -> str:
    """A section on one package: its summary and each public name with its documentation."""
    module = import_module(package)
    names = public_names(module)
    lines = []
    for name in names:
        directive = "autoclass" if inspect.isclass(getattr(module, name)) else "autofunction"
        lines.append(f".. {directive}:: {package}.{name}")
        if directive == "autoclass":
            lines.append("   :members:")
    summary = (module.__doc__ or "").partition("\n")[0].replace("``", "`")
    listed = ", ".join(f"`{name}`" for name in names)
    body = "\n".join(lines)
    return f"## {package}\n\n{summary}\nNames: {listed}.\n\n```{{eval-rst}}\n{body}\n```"


def sections() -> dict[Path, dict[str, str]]:
    """Generated text by file and marker."""
    return {
        ROOT / "README.md": {"mixers": mixers_table(), "families": families_table()},
        ROOT / "docs" / "mixers.md": {"mixers": mixer_costs_table()},
        ROOT / "docs" / "evaluation.md": {"tasks": measures_table("task"), "benchmarks": measures_table("benchmark")},
        ROOT / "docs" / "fixtures.md": {"scores": scores_table()},
        ROOT / "docs" / "policies.md": {"policies": policies_table()},
        ROOT / "docs" / "command-line.md": {"commands": commands_table()},
        ROOT / "docs" / "probes.md": {"probes": described_table("probe")},
        ROOT / "docs" / "conversion.md": {"recipes": described_table("recipe")},
        ROOT / "docs" / "claims.md": {"claims": claims()},
        ROOT / "docs" / "api.md": {"names": "\n\n".join(map(names_of, PACKAGES))},
    }


def claims() -> str:
    """The table of claims, from the evidence that comes with plait."""
    return claims_table({one.name: kept_evidence(one.name) for one in methods("claim")}, link="claims/{}.md")


def claim_files() -> dict[Path, str]:
    """Page and figure of every claim that has evidence."""
    files = {}
    for method in methods("claim"):
        evidence = kept_evidence(method.name)
        if evidence is not None:
            claim, folder = load_claim(method.name), ROOT / "docs" / "claims"
            files[folder / f"{method.name}.md"] = claim_page(claim, evidence, f"{method.name}.svg")
            files[folder / f"{method.name}.svg"] = lines_svg(claim.figure(evidence.data))
    return files


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
    for path, text in claim_files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    sys.exit(main())

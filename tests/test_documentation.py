"""The documentation is true: its code runs, its tables match the code, its links exist, public names are described."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from plait import catalog
from plait.cli import app as front

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUNNABLE = {"python", "bash", "yaml"}
_FENCE = re.compile(r"^```(?P<info>[^`\n]+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?://|#|mailto:)(?P<target>[^)#\s]+)")

#: Stands before the real commands: what a page says about installing and building is checked, not carried out.
SHIMS = {
    "make": 'exec /usr/bin/env -i PATH="$REAL_PATH" make -n -C "$REPOSITORY" "$@" >/dev/null',
    "pip": 'exec "$PYTHON" "$REPOSITORY/tests/test_documentation.py" "$@"',
}


@dataclass(frozen=True)
class Block:
    language: str
    words: tuple[str, ...]
    code: str
    line: int

    @property
    def file(self) -> str | None:
        return next((word.removeprefix("file=") for word in self.words if word.startswith("file=")), None)

    @property
    def slow(self) -> bool:
        return "slow" in self.words


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        language, *words = match["info"].split()
        if not language.startswith("{"):  # a directive of the documentation's builder
            found.append(Block(language, tuple(words), match["code"], text[: match.start()].count("\n") + 2))
    return found


def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("documentation_tables", ROOT / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


#: Everything that a reader may import by name.
PUBLIC = ("plait", *tables().PACKAGES)


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's folder: a text, and commands that find this plait."""
    folder = tmp_path / "reader"
    (folder / "runs").mkdir(parents=True)
    sources = sorted(Path(os.__file__).parent.glob("[a-d]*.py"))
    text = "\n\n".join(path.read_text(encoding="utf-8", errors="replace") for path in sources)
    (folder / "my-text.txt").write_text(text[:400_000], encoding="utf-8")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, script in SHIMS.items():
        (commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("REAL_PATH", os.environ["PATH"])
    monkeypatch.setenv("REPOSITORY", str(ROOT))
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("PATH", f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    catalog._all.cache_clear()
    for name, module in list(sys.modules.items()):  # another page may have a file of the same name
        if (getattr(module, "__file__", None) or "").startswith(f"{folder}{os.sep}"):
            del sys.modules[name]


def run_block(block: Block, page: Path, names: dict[str, object]) -> None:
    where = f"{page.relative_to(ROOT)}, line {block.line}"
    if block.file:
        Path(block.file).write_text(block.code, encoding="utf-8")
    if block.language == "python" and not block.file:
        catalog._all.cache_clear()  # a package may have been installed by the page
        exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), names)
    elif block.language == "bash" and (commands := plain_commands(block.code)):
        for words in commands:
            assert exit_status(words) == 0, f"{where}: {shlex.join(words)}"
    elif block.language == "bash":
        result = subprocess.run(["bash", "-euc", block.code], capture_output=True, text=True, timeout=600, check=False)
        assert result.returncode == 0, f"{where}:\n{block.code}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    elif block.language == "yaml":
        validate(block.code, where)


def exit_status(words: list[str]) -> object:
    """Run a command of plait in this process."""
    catalog._all.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        try:
            front.main(words[1:])
        except SystemExit as end:
            return end.code
    return None


def plain_commands(code: str) -> list[list[str]]:
    """The words of each command if all are calls of ``plait`` without the shell's own signs, else nothing.

    Such blocks run in this process, which has torch and transformers loaded already.
    """
    lines = [line for line in code.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    if any(re.search(r"[|<>&;$`*]|^(?!plait )", re.sub(r"\s#.*$", "", line)) for line in lines):
        return []
    return [shlex.split(line, comments=True) for line in lines]


def validate(text: str, where: str) -> None:
    """A run file, a study file or that of a scaling study, by its keys."""
    from plait.runs.config import RunConfig
    from plait.sections import validated
    from plait.study.file import parse_study
    from plait.study.scaling.file import parse_scaling

    values = yaml.safe_load(text)
    if isinstance(values, dict) and "tracks" in values:
        parse_study(values, where)
    elif isinstance(values, dict) and "sizes" in values:
        parse_scaling(values, where)
    else:
        validated(RunConfig, values, where)


def _page(page: Path) -> object:
    """One test a page; pages with slow blocks get a second one that runs all of them."""
    return pytest.param(page, False, id=str(page.relative_to(ROOT)))


def _slow_page(page: Path) -> object:
    return pytest.param(page, True, id=f"{page.relative_to(ROOT)}-slow", marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("page", "slow"),
    [_page(page) for page in PAGES if any(b.language in RUNNABLE or b.file for b in blocks(page))]
    + [_slow_page(page) for page in PAGES if any(block.slow for block in blocks(page))],
)
def test_every_code_block_runs(page: Path, slow: bool, empty_folder: Path) -> None:
    names: dict[str, object] = {"__name__": "documentation"}
    for block in blocks(page):
        if slow or not block.slow:
            run_block(block, page, names)
    if page.name == "README.md":
        check_new_mixer("moving_average")


def check_new_mixer(name: str) -> None:
    """The README's mixer keeps the contract that it promises (its logits are stored nowhere)."""
    from contracts.checks import CHECKS

    assert name in catalog.names("mixer"), "the README's package was not found by its entry point"
    for check, function in CHECKS.items():
        if check != "golden":
            function(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_are_marked_as_the_tests_read_them(page: Path) -> None:
    for block in blocks(page):
        unknown = [word for word in block.words if word != "slow" and not word.startswith("file=")]
        assert not unknown, f"{page.name}, line {block.line}: {unknown} means nothing to the tests"
    assert len(re.findall(r"^```", page.read_text(encoding="utf-8"), re.MULTILINE)) % 2 == 0, "a block is not closed"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_local_links_exist(page: Path) -> None:
    prose = _FENCE.sub("", page.read_text(encoding="utf-8"))
    missing = [link for link in _LINK.findall(prose) if not (page.parent / link).exists()]
    assert not missing, f"{page.name} links to {missing}"


def test_generated_parts_are_up_to_date() -> None:
    module = tables()
    for path, parts in module.sections().items():
        text = path.read_text(encoding="utf-8")
        for marker, body in parts.items():
            assert module.filled(text, marker, body) == text, f"{path.name} is out of date: run docs/tables.py"


def test_papers_are_linked_by_their_arxiv_number_alone() -> None:
    paper = tables().paper
    assert paper("2312.04927") == "[2312.04927](https://arxiv.org/abs/2312.04927)"
    assert paper("Jaeger 2002") == "Jaeger 2002"
    assert paper("") == "-"


def test_every_task_and_benchmark_is_named_on_its_page() -> None:
    module = tables()
    for method in module.methods("task", "benchmark"):
        page = ROOT / "docs" / "tasks" / f"{module.page_of(method)}.md"
        named = re.search(rf"\b{method.name}\b", page.read_text(encoding="utf-8"))
        assert named, f"{page.name} says nothing of {method.name}"


def test_every_page_stands_in_the_contents() -> None:
    docs = ROOT / "docs"
    text = "".join((docs / name).read_text("utf-8") for name in ("index.md", "claims.md"))
    contents = re.findall(r"^```\{toctree\}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    entries = [line for part in contents for line in part.splitlines() if line and not line.startswith(":")]
    listed = [page.relative_to(docs).with_suffix("") for entry in entries for page in docs.glob(f"{entry}.md")]
    pages = [page.relative_to(docs).with_suffix("") for page in docs.rglob("*.md")]
    assert sorted(map(str, listed)) == sorted(str(page) for page in pages if str(page) != "index")


def test_a_missing_marker_is_an_error() -> None:
    with pytest.raises(SystemExit, match="markers of 'names'"):
        tables().filled("no markers", "names", "")


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names_are_described(package: str) -> None:
    module = import_module(package)
    assert module.__doc__, f"{package} has no docstring"
    bare = []
    for name in tables().public_names(module):
        value = getattr(module, name)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        if not (value.__doc__ or "").strip() or (value.__doc__ or "").startswith(f"{name}("):  # made by dataclass
            bare.append(name)
        if inspect.isclass(value):
            methods = [n for n, m in vars(value).items() if inspect.isfunction(m) and not n.startswith("_")]
            bare += [f"{name}.{n}" for n in methods if not inspect.getdoc(getattr(value, n))]
    assert not bare, f"{package}: no docstring on {', '.join(bare)}"


@pytest.mark.parametrize("package", PUBLIC[1:])
def test_public_names_stand_in_the_documentation(package: str) -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    names = tables().public_names(import_module(package))
    assert names, f"{package} has no public names"
    missing = [name for name in names if f":: {package}.{name}\n" not in text]
    assert not missing, f"docs/api.md lacks {missing}"


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda path: path.name)
def test_study_files_are_valid(path: Path) -> None:
    validate(path.read_text(encoding="utf-8"), path.name)


def _pip(arguments: list[str]) -> None:
    """``pip install`` as the pages write it: known extras for plait, entry points for the package of this folder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert arguments[0] == "install", arguments
    if "--index-url" in arguments:
        assert arguments == ["install", "torch", "--index-url", "https://download.pytorch.org/whl/cpu"], arguments
        return
    for target in (argument for argument in arguments[1:] if not argument.startswith("-")):
        name, _, extras = target.rstrip("]").partition("[")
        assert name == ".", f"the tests cannot install {target}"
        unknown = set(filter(None, extras.split(","))) - set(project["optional-dependencies"])
        assert not unknown, f"plait has no extra {unknown}"
    if Path("pyproject.toml").exists():
        own = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
        folder = Path(f"{own['name'].replace('-', '_')}-{own['version']}.dist-info")
        folder.mkdir(exist_ok=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {own['name']}\nVersion: {own['version']}\n")
        groups = [
            f"[{group}]\n" + "\n".join(f"{name} = {target}" for name, target in entries.items())
            for group, entries in own["entry-points"].items()
        ]
        (folder / "entry_points.txt").write_text("\n".join(groups) + "\n")


if __name__ == "__main__":
    _pip(sys.argv[1:])

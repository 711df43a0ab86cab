"""``plait show``: a method as its own code describes it."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from plait import catalog
from plait.catalog import Method
from plait.cli import app as front
from plait.cli.show import _options, describe
from plait.mixers import Dims


def show(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        front.main(["show", *arguments])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("method", catalog.methods(), ids=lambda method: f"{method.kind}-{method.name}")
def test_every_method_is_described_in_full(method: Method) -> None:
    described = describe(method, hidden_size=256, length=128)
    assert described["documentation"]
    assert re.fullmatch(r"https://arxiv.org/abs/\d{4}\.\d{4,5}|Jaeger 2002|", described["paper"])
    assert method.kind != "mixer" or described["paper"]
    bare = [option["name"] for option in described["options"] if not option["description"]]
    assert not bare, f"no description in the docstring of the options: {bare}"
    if method.kind == "mixer":
        assert described["formula"], "the docstring of cost() gives no formula"
        assert described["options"]
        assert described["state"]["segments"]


@pytest.mark.parametrize("name", catalog.names("mixer"))
def test_cost_is_that_of_the_mixer_at_the_sizes_asked_for(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = json.loads(show(capsys, name, "--kind", "mixer", "--hidden-size", "512", "--length", "300", "--json"))
    mixer = catalog.get(name).load()
    expected = dataclasses.asdict(mixer.cost(Dims(512), 300, mixer.Options()))
    assert shown["cost"] == {"hidden_size": 512, "length": 300, **expected}


def test_published_check_value(capsys: pytest.CaptureFixture[str]) -> None:
    """2507.06457, appendix: 24 softmax layers of width 2048 cost 1.649e12 FLOP at 4096 tokens."""
    shown = json.loads(show(capsys, "attention", "--json"))
    assert 24 * shown["cost"]["flops_prefill"] == pytest.approx(1.649e12, rel=1e-3)


def test_text_names_paper_options_defaults_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    text = show(capsys, "gated_deltanet")
    for expected in (
        "Gated DeltaNet (mixer)",
        "https://arxiv.org/abs/2412.06464",
        "expand_v: float, default 1.0",
        "c = 8",
        "17.2 GFLOP",
        "constant with the context",
    ):
        assert expected in text


def test_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        front.main(["show", "gated_deltanett"])
    assert end.value.code == 1
    assert "Did you mean 'gated_deltanet'?" in capsys.readouterr().err


def test_a_name_of_two_kinds_asks_which(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    twin = dataclasses.replace(catalog.get("gla"), kind="task")
    monkeypatch.setattr(catalog, "methods", lambda kind=None: [catalog.get("gla"), twin])
    with pytest.raises(SystemExit):
        front.main(["show", "gla"])
    assert "add --kind mixer or --kind task" in capsys.readouterr().err


def test_options_of_a_base_class_keep_their_descriptions() -> None:
    @dataclasses.dataclass
    class Base:
        """Base.

        Args:
            kept: of the base.
            changed: of the base.
        """

        kept: int = 1
        changed: list[int] = dataclasses.field(default_factory=list)

    @dataclasses.dataclass
    class Own(Base):
        """Own.

        Args:
            changed: anew.
        """

    described = {entry["name"]: (entry["default"], entry["description"]) for entry in _options(Own)}
    assert described == {"kept": (1, "of the base."), "changed": ([], "anew.")}

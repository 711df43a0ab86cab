"""The catalogue: its tables, its tags, and the rows that another package adds."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator

import pytest

from plait import catalog
from plait.catalog import Method, PaperSizes
from plait.cli import app as front
from plait.errors import CatalogError


class Entry:
    """An installed package's entry point."""

    def __init__(self, value: object) -> None:
        self.load = lambda: value


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Pretends that packages with these entry points are installed."""

    def use(*values: object) -> None:
        monkeypatch.setattr(catalog, "entry_points", lambda group: [Entry(value) for value in values])
        catalog._all.cache_clear()

    yield use
    monkeypatch.undo()
    catalog._all.cache_clear()


@pytest.mark.parametrize("method", catalog.methods(), ids=lambda method: f"{method.kind}-{method.name}")
def test_every_row_is_a_documented_class(method: Method) -> None:
    target = method.load()
    assert inspect.isclass(target)
    assert target.__doc__
    assert catalog.method_of(target, method.kind) is method
    assert catalog.name_of(target, method.kind) == method.name
    assert method.title


def test_methods_are_chosen_by_tags() -> None:
    full, recurrent = catalog.names("mixer", full=True), catalog.names("mixer", recurrent=True)
    assert "attention" in full
    assert "gated_deltanet" in recurrent
    assert not set(full) & set(recurrent)
    assert set(catalog.names("mixer", peer=...)) == {m.name for m in catalog.methods("mixer") if m.peer is not None}
    assert catalog.names("mixer", state="bounded") == ["lizard"]
    with pytest.raises(AttributeError):
        catalog.names("mixer", fast=True)


def test_tags_that_contradict_each_other_are_nowhere() -> None:
    for method in catalog.methods("mixer"):
        assert method.work
        assert method.state
        if method.full:  # it holds every earlier token and scores every pair
            assert (method.state, method.work, method.sparse) == ("grows", "T^2", False), method.name
        if method.state in ("constant", "bounded"):
            assert method.work == "T", method.name


def test_sizes_of_the_paper_grow_by_heads() -> None:
    assert PaperSizes({"head_dim": 256}, head_size=256).at(2048) == {"num_heads": 8, "head_dim": 256}
    assert PaperSizes({"num_heads": 4}).at(2048) == {"num_heads": 4}


def test_rows_of_other_packages_are_rows_like_the_others(install) -> None:
    mean = Method("mean", "mixer", "mean:Mean", "Mean", "", "constant", recurrent=True)
    median = Method("median", "probe", "mean:Median", "Median", "")
    install(mean, [median])
    assert catalog.get("mean") is mean
    assert catalog.names("probe")[-1] == "median"
    assert catalog.names("mixer", recurrent=True)[-1] == "mean"


def test_two_rows_of_one_name_are_an_error(install) -> None:
    install(Method("gla", "mixer", "other:GLA", "Another", ""))
    with pytest.raises(CatalogError, match=r"plait\.mixers\.gla:GLA and other:GLA"):
        catalog.get("gla")


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(CatalogError, match=r"no mixer named 'glaa'\. Did you mean 'gla'\?"):
        catalog.get("glaa")


def test_list_shows_tags_of_one_kind_and_all_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        front.main(["list", "--kind", "mixer"])
    header, first, *_ = capsys.readouterr().out.splitlines()
    assert "tags" in header
    assert "full" in first
    with pytest.raises(SystemExit):
        front.main(["list", "--kind", "mixer", "--json"])
    row = json.loads(capsys.readouterr().out)[1]
    assert (row["name"], row["work"], row["peer"]["name"]) == ("retnet", "T", "MultiScaleRetention")

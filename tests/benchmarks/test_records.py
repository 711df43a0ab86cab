"""Made-up records: layouts that an independent reader can parse, values that stand once, chance, and the budget."""

from __future__ import annotations

import random
import re

import pytest

from benchmarks.probe_samples import count, tokenizer
from plait import catalog
from plait.benchmarks import build_benchmark
from plait.benchmarks.records import FIELDS, Records
from plait.errors import DataError

BYTES = tokenizer("bytes")
LAYOUTS = ["lines", "form", "markdown", "table", "list", "prose"]
READERS = {
    "lines": r"^([^:\n]+): (.+)$",
    "form": r"^(\S[^\n]*)\n    (.+)$",
    "markdown": r"^\| ([A-Z][^|]*) \| ([^|]+) \|$",
    "table": r"<th>(.+)</th><td>(.+)</td>",
    "list": r"<dt>(.+)</dt><dd>(.+)</dd>",
    "prose": r"^The entry for (.+) reads (.+)\.$",
}


def read(text: str, layout: str) -> tuple[dict[str, str], str]:
    """The fields of a page and the one that is asked."""
    page, _, asked = text.rpartition("\n\n")
    assert asked.endswith(":")
    found = {k: v for k, v in re.findall(READERS[layout], page, re.MULTILINE) if k in FIELDS}
    return found, asked[:-1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_reader_of_the_page_scores_one(layout: str) -> None:
    task = Records(layouts=[layout], fields=20, sentences=30)
    asked_fields, depths = set(), set()
    for index in range(40):
        prompt = task.prompt(index, BYTES)
        found, asked = read(prompt.text, layout)
        assert len(found) == 20
        assert prompt.references == (found[asked],)
        assert task.score(f" {found[asked]}", prompt) == 1
        assert prompt.text.lower().count(found[asked].lower()) == 1
        others = [value for name, value in found.items() if name != asked]
        assert all(task.score(value, prompt) == 0 for value in others)
        assert (prompt.max_new_tokens, prompt.stop) == (48, ("\n",))
        assert prompt.facts["layout"] == layout
        place = prompt.text.index(found[asked]) / len(prompt.text)
        assert abs(prompt.facts["depth"] / 100 - place) <= 0.126
        asked_fields.add(asked)
        depths.add(prompt.facts["depth"])
    assert len(asked_fields) > 12
    assert depths >= {0, 25, 50, 75}


def test_layouts_take_turns() -> None:
    assert [Records().prompt(index, BYTES).facts["layout"] for index in range(12)] == LAYOUTS * 2


def test_copying_any_value_scores_chance() -> None:
    task, rng, right = Records(fields=8, layouts=["lines"]), random.Random(0), 0.0
    for index in range(800):
        prompt = task.prompt(index, BYTES)
        found, _ = read(prompt.text, "lines")
        right += task.score(rng.choice(list(found.values())), prompt)
    assert right / 800 == pytest.approx(1 / 8, abs=0.04)


def test_sentences_stand_between_the_fields() -> None:
    lines = Records(layouts=["lines"], fields=4, sentences=3).prompt(0, BYTES).text.split("\n")
    assert len([line for line in lines[:-2] if line.endswith(".")]) == 3
    assert len(lines) == 4 + 3 + 2
    assert Records(layouts=["lines"], fields=4, sentences=0).prompt(0, BYTES).text.count("\n") == 5


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_a_length_is_filled_and_never_exceeded(name: str) -> None:
    task = build_benchmark("records", {"length": 3000, "fields": 12})
    for index in range(6):
        used = count(name, task.prompt(index, tokenizer(name)).text) + 48
        assert 3000 - 110 < used <= 3000


def test_options_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="fields=27 must be 2 to 26"):
        Records(fields=27)
    with pytest.raises(DataError, match=r"no layout 'tabel'\. Did you mean 'table'"):
        Records(layouts=["tabel"])
    with pytest.raises(DataError, match="either sentences or length"):
        Records(sentences=3, length=1000)
    with pytest.raises(DataError, match=r"length=100 is too short for 16 fields; use length >= (\d+)") as error:
        Records(length=100).prompt(0, BYTES)
    least = int(re.findall(r"\d+", str(error.value))[2])
    assert count("bytes", Records(length=least).prompt(0, BYTES).text) + 48 == least


def test_prompts_depend_on_seed_and_index_alone() -> None:
    assert Records(samples=1).prompt(3, BYTES) == Records().prompt(3, BYTES)
    assert Records(seed=1).prompt(3, BYTES).text != Records().prompt(3, BYTES).text


def test_catalogue_knows_the_benchmark() -> None:
    assert catalog.get("records", "benchmark").load() is Records

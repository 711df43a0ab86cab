"""Passkey retrieval: the format of landmark attention line by line, the first number counts, and the budget."""

from __future__ import annotations

import re

import pytest

from benchmarks.probe_samples import count, tokenizer
from plait import catalog
from plait.benchmarks import build_benchmark
from plait.benchmarks.passkey import Passkey
from plait.errors import DataError

BYTES = tokenizer("bytes")
GRASS = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
LANDMARK = [0, 100, 500, 1000, 5000, 8000, 10000, 12000, 14000, 18000, 20000, 25000, 38000]


def solve(text: str) -> str:
    found = re.search(r"\nThe pass key is (\d+)\. Remember it\.", text)
    assert found is not None
    return f" {found.group(1)}."


@pytest.mark.parametrize("characters", [0, 1, 89, 90, 91, 1000, 38000])
def test_five_lines(characters: int) -> None:
    task = Passkey(characters=characters, samples=20)
    before_all = []
    for index in range(20):
        prompt = task.prompt(index, BYTES)
        description, before, information, after, question = prompt.text.split("\n")
        assert description == (
            "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will quiz "
            "you about the important information there."
        )
        key = prompt.references[0]
        assert information == f"The pass key is {key}. Remember it. {key} is the pass key."
        assert 1 <= int(key) <= 50_000
        assert question == "What is the pass key? The pass key is"
        endless = " ".join([GRASS] * 500)
        assert before == endless[: len(before)]
        assert after == endless[: len(after)]
        assert len(before) + len(after) == characters
        assert prompt.facts["characters"] == characters
        assert prompt.facts["depth"] == round(10 * len(before) / max(characters, 1)) * 10
        assert prompt.max_new_tokens == 10
        assert task.score(solve(prompt.text), prompt) == 1
        before_all.append(len(before))
    assert len(set(before_all)) > 10 or characters < 10


def test_the_place_is_uniform() -> None:
    task = Passkey(characters=9, samples=2000)
    depths = [len(task.prompt(index, BYTES).text.split("\n")[1]) for index in range(2000)]
    counts = [depths.count(place) for place in range(10)]  # before the key 0..9 characters
    assert sum(counts) == 2000
    assert min(counts) > 140
    assert max(counts) < 260


@pytest.mark.parametrize(
    ("answer", "score"),
    [("{key}", 1), (" {key}. Remember", 1), (" 7 no {key}", 0), ("{key}5", 0), ("none", 0), ("", 0), (" 0{key}", 1)],
)
def test_the_first_whole_number_counts(answer: str, score: float) -> None:
    prompt = Passkey().prompt(0, BYTES)
    assert Passkey().score(answer.format(key=prompt.references[0]), prompt) == score


def test_several_numbers_of_characters_take_turns() -> None:
    task = build_benchmark("passkey", {"preset": "landmark"})
    assert len(task) == 13 * 50
    found = [task.prompt(index, BYTES).facts["characters"] for index in range(26)]
    assert found == LANDMARK + LANDMARK


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_a_length_is_filled_and_never_exceeded(name: str) -> None:
    task = build_benchmark("passkey", {"length": 600})
    for index in range(8):
        prompt = task.prompt(index, tokenizer(name))
        assert 600 - 3 <= count(name, prompt.text) + 10 <= 600
        assert prompt.facts["length"] == 600


def test_prompts_depend_on_seed_and_index_alone() -> None:
    one, other = Passkey(samples=5).prompt(3, BYTES), Passkey(samples=50).prompt(3, BYTES)
    assert one == other
    assert one.references != Passkey().prompt(4, BYTES).references
    assert one.references != Passkey(seed=1).prompt(3, BYTES).references


def test_options_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="either characters or length"):
        Passkey(characters=10, length=500)
    with pytest.raises(DataError, match="characters=-1"):
        Passkey(characters=-1)
    with pytest.raises(DataError, match=r"length=100 is too short; use length >= (\d+)") as error:
        Passkey(length=100).prompt(0, BYTES)
    least = int(str(error.value).split()[-1].rstrip("."))
    assert Passkey(length=least).prompt(0, BYTES).text.count("grass") == 0
    with pytest.raises(DataError, match="too short"):
        Passkey(length=least - 1).prompt(0, BYTES)


def test_catalogue_knows_the_benchmark() -> None:
    assert catalog.get("passkey", "benchmark").load() is Passkey

"""Key-value retrieval from JSON: the paper's frame, unique UUIDs, the paper's positions, and the budget."""

from __future__ import annotations

import json
import re
from uuid import UUID

import pytest

from benchmarks.probe_samples import count, tokenizer
from plait import catalog
from plait.benchmarks import build_benchmark
from plait.benchmarks.key_value_words import KeyValueWords
from plait.errors import DataError

BYTES = tokenizer("bytes")


def parts(text: str) -> tuple[dict[str, str], str]:
    """The pairs and the asked key, read by a JSON parser."""
    match = re.fullmatch(
        r"Extract the value corresponding to the specified key in the JSON object below\.\n\nJSON data:\n"
        r"(?P<data>\{.*\})\n\nKey: \"(?P<key>[^\"]+)\"\nCorresponding value:",
        text,
        re.DOTALL,
    )
    assert match is not None, text
    return json.loads(match["data"]), match["key"]


@pytest.mark.parametrize("pairs", [2, 3, 75])
def test_frame_and_a_perfect_solver(pairs: int) -> None:
    task = KeyValueWords(pairs=pairs)
    for index in range(10):
        prompt = task.prompt(index, BYTES)
        data, key = parts(prompt.text)
        assert len(data) == pairs
        assert all(str(UUID(word)) == word and UUID(word).version == 4 for pair in data.items() for word in pair)
        assert len({word for pair in data.items() for word in pair}) == 2 * pairs
        assert prompt.references == (data[key],)
        assert prompt.max_new_tokens == 100
        assert task.score(f' "{data[key]}"', prompt) == 1
        assert task.score(data[key].upper(), prompt) == 1
        assert task.score(data[key][:-1], prompt) == 0
        wrong = [value for value in data.values() if value != data[key]]
        assert task.score(wrong[0], prompt) == 0


def test_lines_of_the_paper() -> None:
    text = KeyValueWords(pairs=3).prompt(0, BYTES).text
    lines = text.split("\n")[3:6]
    assert lines[0].startswith('{"')
    assert lines[1].startswith(' "')
    assert lines[2].startswith(' "')
    assert [line[-1] for line in lines] == [",", ",", "}"]


def test_the_key_can_stand_first_too() -> None:
    plain, first = KeyValueWords().prompt(0, BYTES), KeyValueWords(query_first=True).prompt(0, BYTES)
    _, key = parts(plain.text)
    head = "Extract the value corresponding to the specified key in the JSON object below.\n\n"
    assert first.text == plain.text.replace(head, f'{head}Key: "{key}"\n\n')


@pytest.mark.parametrize("pairs", [75, 140, 300])
def test_positions_of_the_paper(pairs: int) -> None:
    indices = {75: [0, 24, 49, 74], 140: [0, 34, 69, 104, 139], 300: [0, 49, 99, 149, 199, 249, 299]}[pairs]
    for place in indices:
        task = KeyValueWords(pairs=pairs, position=place / (pairs - 1))
        data, key = parts(task.prompt(0, BYTES).text)
        assert list(data).index(key) == place


def test_places_are_uniform_without_a_position() -> None:
    task = KeyValueWords(pairs=4)
    places = []
    for index in range(800):
        prompt = task.prompt(index, BYTES)
        data, key = parts(prompt.text)
        places.append(list(data).index(key))
        assert prompt.facts == {"pairs": 4, "depth": [0, 30, 70, 100][places[-1]]}
    assert all(140 < places.count(place) < 260 for place in range(4))


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_a_length_is_filled_and_never_exceeded(name: str) -> None:
    task = build_benchmark("json_retrieval", {"length": 1500})
    for index in range(6):
        prompt = task.prompt(index, tokenizer(name))
        used = count(name, prompt.text) + 100
        pair = count(name, '"' + "0" * 36 + '": "' + "0" * 36 + '",\n ')
        assert 1500 - 1.3 * pair < used <= 1500
        assert prompt.facts["length"] == 1500


def test_options_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="either pairs or length"):
        KeyValueWords(pairs=3, length=1000)
    with pytest.raises(DataError, match="pairs=1 must be at least 2"):
        KeyValueWords(pairs=1)
    with pytest.raises(DataError, match=r"position=1\.5"):
        KeyValueWords(position=1.5)
    with pytest.raises(DataError, match=r"length=200 is too short; use length >= (\d+)") as error:
        KeyValueWords(length=200).prompt(0, BYTES)
    least = int(str(error.value).split()[-1].rstrip("."))
    assert len(parts(KeyValueWords(length=least).prompt(0, BYTES).text)[0]) == 2


def test_prompts_depend_on_seed_and_index_alone() -> None:
    assert KeyValueWords(samples=1).prompt(3, BYTES) == KeyValueWords().prompt(3, BYTES)
    assert KeyValueWords(seed=1).prompt(3, BYTES).references != KeyValueWords().prompt(3, BYTES).references
    assert build_benchmark("json_retrieval", {"preset": "140"}) == KeyValueWords(pairs=140)


def test_catalogue_knows_the_benchmark() -> None:
    assert catalog.get("json_retrieval", "benchmark").load() is KeyValueWords

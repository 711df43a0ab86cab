"""Needles: frames word by word, how many and where, what is asked for."""

from __future__ import annotations

import re

import pytest

from benchmarks.ruler.material import NOISE, folder, task, tokenizer
from plait.benchmarks.base import Prompt
from plait.benchmarks.ruler import niah
from plait.benchmarks.ruler.essays import sentences
from plait.benchmarks.ruler.niah import _DEPTHS
from plait.errors import OptionError

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
NUMBER = r"[1-9][0-9]{6}"
NEEDLE = re.compile(r"One of the special magic (numbers|uuids) for ([^:]+) is: ([0-9a-f-]+)\.")

#: Name -> haystack, needles asked about or beside them, references, form of key and value.
VARIANTS = {
    "niah_single_1": ("noise", 1, 1, r"\S+-\S.*", NUMBER),
    "niah_single_2": ("essay", 1, 1, r"\S+-\S.*", NUMBER),
    "niah_single_3": ("essay", 1, 1, r"\S+-\S.*", UUID),
    "niah_multikey_1": ("essay", 4, 1, r"\S+-\S.*", NUMBER),
    "niah_multikey_2": ("needle", 1, 1, r"\S+-\S.*", NUMBER),
    "niah_multikey_3": ("needle", 1, 1, UUID, UUID),
    "niah_multivalue": ("essay", 4, 4, r"\S+-\S.*", NUMBER),
    "niah_multiquery": ("essay", 4, 4, r"\S+-\S.*", NUMBER),
}


def prompts(name: str, count: int = 20) -> list[Prompt]:
    benchmark = task(name, length=2047)
    return [benchmark.prompt(index, tokenizer()) for index in range(count)]


def split(prompt: Prompt) -> tuple[str, str, str]:
    """First line, context, last line."""
    first, rest = prompt.text.split("\n", 1)
    context, last = rest.rsplit("\n", 1)
    return first, context, last


@pytest.mark.parametrize("name", VARIANTS)
def test_needles_and_references(name: str) -> None:
    haystack, needles, references, key_form, value_form = VARIANTS[name]
    for prompt in prompts(name):
        _, context, last = split(prompt)
        found = NEEDLE.findall(context)
        size = prompt.facts["size"]
        assert len(found) == needles + (size if haystack == "needle" else 0)
        kind = "uuids" if value_form == UUID else "numbers"
        pairs: dict[str, list[str]] = {}
        for own_kind, key, value in found:
            assert own_kind == kind
            assert re.fullmatch(key_form, key)
            assert re.fullmatch(value_form, value)
            pairs.setdefault(key, []).append(value)
        assert len(pairs) == len(found) // (4 if name == "niah_multivalue" else 1)  # no key twice
        assert prompt.max_new_tokens == 128
        assert prompt.stop == ()
        assert len(set(prompt.references)) == references
        asked = [key for key in pairs if re.search(rf"(?: |^){re.escape(key)}(?:,| mentioned)", last)]
        assert sorted(prompt.references) == sorted(value for key in asked for value in pairs[key])


def test_frame_of_one_needle() -> None:
    """Every ``are`` is singular, the needle itself keeps its plural."""
    for name, word in (("niah_single_1", "number"), ("niah_multikey_3", "uuid")):
        prompt = prompts(name, 1)[0]
        first, context, last = split(prompt)
        key = next(key for _, key, value in NEEDLE.findall(context) if value == prompt.references[0])
        assert first == (
            f"A special magic {word} is hidden within the following text. Make sure to memorize it. "
            f"I will quiz you about the {word} afterwards."
        )
        assert last == (
            f"What is the special magic {word} for {key} mentioned in the provided text? "
            f"The special magic {word} for {key} mentioned in the provided text is"
        )


def test_frame_of_four_keys() -> None:
    prompt = prompts("niah_multiquery", 1)[0]
    first, context, last = split(prompt)
    key_of = {value: key for _, key, value in NEEDLE.findall(context)}
    a, b, c, d = (key_of[value] for value in prompt.references)
    assert first == (
        "Some special magic numbers are hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the numbers afterwards."
    )
    assert last == (
        f"What are all the special magic numbers for {a}, {b}, {c}, and {d} mentioned in the provided text? "
        f"The special magic numbers for {a}, {b}, {c}, and {d} mentioned in the provided text are"
    )


def test_frame_of_four_values() -> None:
    prompt = prompts("niah_multivalue", 1)[0]
    key = NEEDLE.findall(split(prompt)[1])[0][1]
    assert split(prompt)[2] == (
        f"What are all the special magic numbers for {key} mentioned in the provided text? "
        f"The special magic numbers for {key} mentioned in the provided text are"
    )


def test_noise_is_one_paragraph_a_line() -> None:
    places = set()
    for prompt in prompts("niah_single_1"):
        lines = split(prompt)[1].split("\n")
        assert lines.count(NOISE) == prompt.facts["size"] == len(lines) - 1
        place = next(place for place, line in enumerate(lines) if line != NOISE)
        assert place < len(lines) - 1  # before one of the n lines, so never last
        places.add(place)
    assert len(places) > 5


def test_essay_needles_stand_between_sentences_at_the_depths() -> None:
    """Without the needles, the sentences are those of the first n words, in their order."""
    essays = str(folder() / "essays")
    benchmark = task("niah_multikey_1", length=20_000)
    for prompt in [benchmark.prompt(index, tokenizer()) for index in range(5)]:
        context = split(prompt)[1]
        text = sentences(essays, int(prompt.facts["size"]))
        parts = NEEDLE.sub("\0", context).split("\0")
        assert " ".join(" ".join(parts).split()) == " ".join(text)
        allowed = {" ".join(text[: int(len(text) * (depth / 100))]) for depth in _DEPTHS}
        for needles in range(1, 5):
            assert " ".join(" ".join(parts[:needles]).split()) in allowed


def test_depths_are_forty_rounded_points() -> None:
    assert _DEPTHS[:5] == [0, 3, 5, 8, 10]
    assert _DEPTHS[-2:] == [97, 100]
    assert len(_DEPTHS) == len(set(_DEPTHS)) == 40


def test_no_key_stands_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(niah._MAKERS, "words", lambda rng: f"few-{rng.randrange(40)}")
    context = task("niah_multikey_2").draft(0, 35, tokenizer()).question
    assert len({key for _, key, _ in NEEDLE.findall(context)}) == 36


def test_depth_is_where_the_first_needle_asked_for_begins() -> None:
    for prompt in prompts("niah_multiquery"):
        context = split(prompt)[1]
        start = context.rindex("One of", 0, context.index(f"is: {prompt.references[0]}."))
        assert prompt.facts["depth"] == round(100 * start / len(context), 1)


def test_the_last_of_four_keys_is_asked_for_as_often_as_the_first() -> None:
    """The needles' order is fixed by the seed 42: 2, 1, 3, 0. Which is asked for is random."""
    places = [0, 0, 0, 0]
    for prompt in prompts("niah_multikey_1"):
        found = [value for _, _, value in NEEDLE.findall(split(prompt)[1])]
        places[found.index(prompt.references[0])] += 1
    assert min(places) >= 1


def test_needle_lines_are_shuffled_by_seed_42() -> None:
    """Values of one key are referenced in the order drawn; in the text they stand as ``Random(42)`` shuffles four."""
    for prompt in prompts("niah_multivalue", 5):
        found = [value for _, _, value in NEEDLE.findall(split(prompt)[1])]
        assert [prompt.references.index(value) for value in found] == [2, 1, 3, 0]


def test_essays_are_needed() -> None:
    with pytest.raises(OptionError, match="niah_multiquery hides its needles in essays: set essays to a folder"):
        task("niah_multiquery", essays="")
    with pytest.raises(OptionError, match="'niah_single_1' has no option 'essays'"):
        task("niah_single_1", essays="x")

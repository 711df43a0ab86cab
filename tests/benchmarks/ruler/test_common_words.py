"""Common words: counts, numbering, the example, lists that are too short."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.ruler.material import task, tokenizer
from plait.benchmarks.ruler.words import all_words
from plait.errors import DataError

FRAME = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n{0}\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 words "
    "that appear most often in the list are:"
)


def listed(text: str) -> list[str]:
    """The words of a numbered list, whose numbers must run from 1; some words hold blanks."""
    words = re.split(r"(?:^| )(?=\d+\. )", text)[1:] if text.startswith(" ") else re.split(r" (?=\d+\. )", text)
    assert [int(word.split(". ")[0]) for word in words] == list(range(1, len(words) + 1))
    return [word.split(". ", 1)[1] for word in words]


@pytest.mark.parametrize(
    ("length", "example", "often", "seldom"), [(2600, (20, 3, 1), 6, 1), (9000, (40, 10, 3), 30, 3)]
)
def test_counts_and_frame(length: int, example: tuple[int, int, int], often: int, seldom: int) -> None:
    benchmark = task("cwe", length=length)
    for index in range(3):
        prompt = benchmark.prompt(index, tokenizer())
        shown, text = prompt.text.rsplit("\nBelow is", 1)
        lists = [part.split("\n")[1] for part in (shown, "Below is" + text)]
        assert "Below is" + text == FRAME.format(lists[1])
        before, answers = shown.split(" in the list are: ")
        assert before + " in the list are:" == FRAME.format(lists[0])

        counts = Counter(listed(lists[1]))
        assert [counts[word] for word in prompt.references] == [often] * 10
        assert sorted(set(counts.values())) == [seldom, often]
        assert len(counts) == prompt.facts["size"]

        size, common, rare = example
        counts = Counter(listed(lists[0]))
        assert len(counts) == size
        assert sorted(counts.values()) == [rare] * (size - 10) + [common] * 10
        assert {word for word, count in counts.items() if count == common} == set(listed(answers))
        assert prompt.max_new_tokens == 120


def test_lm_eval_shows_no_example_and_has_more_words_instead() -> None:
    plain, other = (task("cwe", compat=compat).prompt(0, tokenizer()) for compat in ("nvidia", "lm_eval"))
    assert other.text.count("Below is") == 1
    assert other.text == FRAME.format(other.text.split("\n")[1])
    assert other.facts["size"] > plain.facts["size"]


def test_words_are_wonderwords_in_the_order_of_seed_42() -> None:
    words = all_words(42)
    assert len(words) == len(set(words)) > 8000
    ordered = sorted(words)
    random.Random(42).shuffle(ordered)
    assert list(words) == ordered


def test_a_length_that_needs_more_words_says_how_many(tmp_path: Path) -> None:
    own = len(all_words(42))
    needed = 1_200_000  # bytes: 3 times 13 a word
    with pytest.raises(DataError, match=rf"needs about (\d+) different words, and wonderwords has {own}; set") as error:
        task("cwe", length=needed).prompt(0, tokenizer())
    count = int(re.findall(r"about (\d+)", str(error.value))[0])
    file = tmp_path / "words.json"
    file.write_text(json.dumps({str(number): f"extra{number:06d}" for number in range(4 * own)}))
    prompt = task("cwe", length=needed, more_words=str(file)).prompt(0, tokenizer())
    assert own < prompt.facts["size"] <= 4 * own
    assert count == pytest.approx(prompt.facts["size"], rel=0.35)  # these words are longer
    assert all(word.startswith("extra") for word in prompt.references)

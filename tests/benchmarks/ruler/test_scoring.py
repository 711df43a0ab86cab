"""RULER's metrics by hand."""

from __future__ import annotations

import pytest

from plait.benchmarks.ruler import TASKS, effective_length, overall
from plait.benchmarks.ruler.scoring import cleaned, percent, string_match_all, string_match_part
from plait.errors import DataError


def test_an_answer_is_stripped_and_control_characters_are_line_ends() -> None:
    assert cleaned(" \t a\x00b\x1fc\rd \x7f\n") == "a\nb\nc\nd \x7f"
    assert cleaned("\x01 x \x01") == "x"  # stripped before and after
    assert cleaned("a b") == "a b"  # 0x20 is none


def test_all_is_the_share_of_references_and_part_is_any() -> None:
    references = ("1234567", "Paris", "the Sea")
    assert string_match_all("it is 1234567, in PARIS", references) == pytest.approx(2 / 3)
    assert string_match_all("the\tsea", references) == 0.0  # the tab has become a line end
    assert string_match_all("xParisx", ["paris"]) == 1.0  # anywhere, also within a word
    assert string_match_part("it is 1234567, in PARIS", references) == 1.0
    assert string_match_part("London", references) == 0.0
    assert string_match_all("", references) == 0.0


def test_percent_is_rounded_to_two_digits() -> None:
    assert percent([1.0, 0.0, 2 / 3]) == 55.56
    assert percent([1 / 3]) == 33.33


def test_score_of_a_length_is_the_mean_over_all_thirteen() -> None:
    assert len(TASKS) == len(set(TASKS)) == 13
    scores = {name: float(place) for place, name in enumerate(TASKS)}
    assert overall(scores) == 6.0
    with pytest.raises(DataError, match="missing: qa_2"):
        overall({name: 1.0 for name in TASKS[:-1]})
    with pytest.raises(DataError, match="not of RULER: mqar"):
        overall({**scores, "mqar": 1.0})


def test_effective_length() -> None:
    scores = {4096: 95.0, 8192: 85.6, 16384: 85.59, 32768: 70.0}
    assert effective_length(scores) == 8192  # the threshold itself passes
    assert effective_length(scores, threshold=80.0) == 16384
    assert effective_length({4096: 85.5}) is None

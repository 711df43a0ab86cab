"""LongBench's metrics by hand."""

from __future__ import annotations

import importlib.util

import pytest

from plait.benchmarks import longbench_metrics
from plait.benchmarks.longbench_metrics import METRICS, check_packages
from plait.errors import DataError, OptionError


def score(metric: str, prediction: str, answer: str, classes: tuple[str, ...] = ()) -> float:
    return METRICS[metric](prediction, answer, classes)


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1),
        ("the tower", "Eiffel Tower", 2 * 1 * 0.5 / 1.5),  # precision 1, recall 1/2
        ("tower tower tower", "the tower", 0.5),  # one of three counts: precision 1/3, recall 1
        ("an apple a day", "day", 2 * 0.5 * 1 / 1.5),
        ("rock-and-roll", "rock and roll", 0),  # punctuation joins words
        ("", "x", 0),
        ("the", "a", 0),
    ],
)
def test_qa_f1(prediction: str, answer: str, expected: float) -> None:
    assert score("qa_f1", prediction, answer) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [("12", "12", 1), ("12 or 13", "12", 0.5), ("12, 12, 3", "12", 2 / 3), ("012", "12", 0), ("none", "12", 0)],
)
def test_count(prediction: str, answer: str, expected: float) -> None:
    assert score("count", prediction, answer) == pytest.approx(expected)


def test_retrieval() -> None:
    assert score("retrieval", "Paragraph 7", "Paragraph 7") == 1
    assert score("retrieval", "It is 7, not 8 or 9 or 10", "Paragraph 7") == 0.25
    assert score("retrieval", "Paragraph 17", "Paragraph 7") == 0
    assert score("retrieval_zh", "段落7", "段落7") == 1
    assert score("retrieval_zh", "7或8", "段落7") == 0.5
    with pytest.raises(DataError, match="names no paragraph"):
        score("retrieval", "7", "段落7")


CLASSES = ("Food", "Other", "Number of something", "Number", "Something")


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("Food", "Food", 1),
        ("Food or Other", "Food", 0.5),
        ("Type: Other", "Food", 0),
        ("Number of something", "Number of something", 1),  # its part "Number" does not count
        ("Number of something", "Number", 0.5),  # the longer name does
        ("food", "Food", 0),  # case counts
    ],
)
def test_classification(prediction: str, answer: str, expected: float) -> None:
    assert score("classification", prediction, answer, CLASSES) == expected


def test_classification_skips_the_class_behind_a_part() -> None:
    # all three are named; "a" goes, "b" stands behind it and escapes, as in the benchmark: 1 of 2 instead of 1
    assert score("classification", "abc", "abc", ("a", "b", "abc")) == 0.5


def test_rouge_l() -> None:
    # longest common subsequence "the cat on the mat"; the package counts distinct words: the, cat, on, mat
    assert score("rouge_l", "the cat on the mat", "the cat on the mat") == pytest.approx(1)
    # of "a b c d" and "a c x": a, c in common: precision 2/4, recall 2/3
    assert score("rouge_l", "a b c d", "a c x") == pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3))
    assert score("rouge_l", "c b a", "a b c") == pytest.approx(1 / 3)  # order counts
    assert score("rouge_l", "", "a") == 0
    assert score("rouge_l", "...", "a") == 0


def test_code_similarity() -> None:
    assert score("code_similarity", "\n\nreturn x\nmore", "return x") == 1
    assert score("code_similarity", "# note\n`code`\n// c\nx = 1", "x = 1") == 1
    assert score("code_similarity", "abcd", "abxd") == 0.75  # 2 x 3 letters in common of 8
    assert score("code_similarity", "abc", "abcdef") == 0.67  # 6 of 9, in full percent
    assert score("code_similarity", "# only a comment", "x") == 0


def test_chinese() -> None:
    pytest.importorskip("jieba")
    assert score("qa_f1_zh", "北京大学。", "北京大学") == 1
    assert score("qa_f1_zh", "上海", "北京大学") == 0
    assert 0 < score("qa_f1_zh", "我来到北京", "北京") < 1  # 我 来到 北京: precision 1/3, recall 1
    assert score("qa_f1_zh", "我来到北京", "北京") == pytest.approx(0.5)
    assert score("rouge_l_zh", "我来到北京", "北京") == pytest.approx(0.5)
    assert score("rouge_l_zh", "", "北京") == 0


@pytest.mark.parametrize(
    ("metric", "package", "extra"),
    [("rouge_l", "rouge", "eval"), ("qa_f1_zh", "jieba", "chinese"), ("code_similarity", "thefuzz", "eval")],
)
def test_a_missing_package_is_named(metric: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_packages(metric)  # installed here
    found = importlib.util.find_spec
    monkeypatch.setattr(longbench_metrics, "find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(OptionError, match=rf"needs the package {package}: pip install "):
        check_packages(metric)
    check_packages("qa_f1")

"""Questions with their documents, from files of SQuAD's or HotpotQA's form or from such a data set of the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from plait.benchmarks.ruler.sources import hub_rows
from plait.errors import DataError
from plait.files import read_json


class Question(NamedTuple):
    """One question; documents are named by their place among all.

    Args:
        text: the question.
        answers: as annotators gave them.
        given: documents that the prompt must show.
        related: other documents of the same article, in its order.
    """

    text: str
    answers: tuple[str, ...]
    given: tuple[int, ...]
    related: tuple[int, ...] = ()


class QuestionSet(NamedTuple):
    """Questions in their order, and all different documents, sorted."""

    questions: tuple[Question, ...]
    documents: tuple[str, ...]


@cache
def squad(source: str) -> QuestionSet:
    """Answerable questions of SQuAD: its JSON form 1.1 or 2.0 by path, or ``hf:NAME`` (split ``validation``).

    Raises:
        DataError: data that cannot be read or has another form.
    """
    articles = _read(source, "SQuAD", _squad_file, _squad_rows)
    places = _places(context for article in articles for context, _ in article)
    questions = []
    for article in articles:
        here = [places[context] for context, _ in article]
        for context, asked in article:
            place = places[context]
            related = tuple(other for other in here if other != place)
            questions += [Question(text, answers, (place,), related) for text, answers in asked]
    return _checked(source, "SQuAD", questions, places)


@cache
def hotpotqa(source: str) -> QuestionSet:
    """Questions of HotpotQA (distractor setting): its JSON form by path, or ``hf:NAME:distractor``.

    Raises:
        DataError: data that cannot be read or has another form.
    """
    rows = _read(source, "HotpotQA", _hotpotqa_file, _hotpotqa_rows)
    places = _places(document for _, _, documents in rows for document in documents)
    questions = [
        Question(text, (answer,), tuple(places[document] for document in documents)) for text, answer, documents in rows
    ]
    return _checked(source, "HotpotQA", questions, places)


_Article = list[tuple[str, list[tuple[str, tuple[str, ...]]]]]
_Row = tuple[str, str, list[str]]


def _squad_file(content: Any) -> list[_Article]:
    return [
        [
            (
                paragraph["context"],
                [
                    (asked["question"], tuple(answer["text"] for answer in asked["answers"]))
                    for asked in paragraph["qas"]
                    if not asked.get("is_impossible", False)  # 1.1 has answers to all
                ],
            )
            for paragraph in article["paragraphs"]
        ]
        for article in content["data"]
    ]


def _squad_rows(rows: Iterable[Mapping[str, Any]]) -> list[_Article]:
    """The hub's form has one row a question; questions without an answer keep their paragraph."""
    articles: dict[str, dict[str, list[tuple[str, tuple[str, ...]]]]] = {}
    for row in rows:
        asked = articles.setdefault(row["title"], {}).setdefault(row["context"], [])
        if answers := tuple(row["answers"]["text"]):
            asked.append((row["question"], answers))
    return [list(paragraphs.items()) for paragraphs in articles.values()]


def _hotpotqa_file(content: Any) -> list[_Row]:
    return [(row["question"], row["answer"], _titled(row["context"])) for row in content]


def _hotpotqa_rows(rows: Iterable[Mapping[str, Any]]) -> list[_Row]:
    return [
        (
            row["question"],
            row["answer"],
            _titled(zip(row["context"]["title"], row["context"]["sentences"], strict=True)),
        )
        for row in rows
    ]


def _titled(context: Iterable[tuple[str, list[str]]]) -> list[str]:
    return [f"{title}\n{''.join(sentences)}" for title, sentences in context]


def _read(
    source: str,
    form: str,
    of_file: Callable[[Any], list[Any]],
    of_rows: Callable[[Iterator[Mapping[str, Any]]], list[Any]],
) -> list[Any]:
    try:
        if source.startswith("hf:"):
            return of_rows(hub_rows(source, "validation"))
        return of_file(read_json(Path(source)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{source} is not of {form}'s form: {type(error).__name__}: {error}.") from error


def _places(documents: Iterable[str]) -> dict[str, int]:
    return {document: place for place, document in enumerate(sorted(set(documents)))}


def _checked(source: str, form: str, questions: list[Question], places: dict[str, int]) -> QuestionSet:
    if not questions or not all(question.answers and question.given for question in questions):
        raise DataError(f"{source} of {form}'s form has no questions, or one without an answer or a document.")
    return QuestionSet(tuple(questions), tuple(places))

"""How RULER reads an answer, and what is made of the scores of its thirteen tasks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from plait import catalog
from plait.errors import DataError

#: The benchmarks of the catalogue that are RULER's, in its order.
TASKS = tuple(
    method.name for method in catalog.methods("benchmark") if method.target.startswith("plait.benchmarks.ruler.")
)
_CONTROL = re.compile(r"[\x00-\x1f]")


def cleaned(prediction: str) -> str:
    """The answer without blanks around it; every character below 0x20 is a line end."""
    return _CONTROL.sub("\n", prediction.strip()).strip()


def string_match_all(prediction: str, references: Sequence[str]) -> float:
    """Share of the references that stand in the answer, case aside."""
    text = cleaned(prediction).lower()
    return sum(reference.lower() in text for reference in references) / len(references)


def string_match_part(prediction: str, references: Sequence[str]) -> float:
    """1 if any reference stands in the answer, case aside, else 0."""
    text = cleaned(prediction).lower()
    return float(any(reference.lower() in text for reference in references))


def percent(scores: Sequence[float]) -> float:
    """Score of a task: the mean over its samples in percent, rounded to two digits as RULER publishes it."""
    return round(100 * sum(scores) / len(scores), 2)


def overall(scores: Mapping[str, float]) -> float:
    """Score of a length: the mean over the thirteen tasks.

    Args:
        scores: by task, all of one length and one ``compat``.

    Raises:
        DataError: a task that is missing or is none of RULER's.
    """
    missing = [name for name in TASKS if name not in scores]
    strange = [name for name in scores if name not in TASKS]
    if missing or strange:
        found = f"missing: {', '.join(missing)}" if missing else f"not of RULER: {', '.join(strange)}"
        raise DataError(f"RULER's score of a length is the mean over its 13 tasks; {found}.")
    return sum(scores[name] for name in TASKS) / len(TASKS)


def effective_length(scores: Mapping[int, float], threshold: float = 85.6) -> int | None:
    """The longest length that scores at least ``threshold``; none if no length does.

    Args:
        scores: by length, in percent.
        threshold: what Llama-2-7b-chat scores at length 4096, the paper's measure.
    """
    return max((length for length, score in scores.items() if score >= threshold), default=None)

"""Which layer plans fit, and which of those no other plan beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from plait.planner.candidates import Candidate


@dataclass
class Choice:
    """Layer plans sorted out.

    Args:
        fits: those that need no more memory than there is.
        front: of these, the ones that no other plan beats, by memory.
        too_large: those that need more.
        refused: combinations that are no model, by reason.
    """

    fits: list[Candidate] = field(default_factory=list)
    front: list[Candidate] = field(default_factory=list)
    too_large: list[Candidate] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """For JSON: every plan that fits, whether it stands on the front, and what was dropped."""
        best = {candidate.key for candidate in self.front}
        return {
            "plans": [{**candidate.record(), "front": candidate.key in best} for candidate in self.fits],
            "dropped": {"too_large": [candidate.record() for candidate in self.too_large], "refused": self.refused},
        }


def choose(found: Sequence[Candidate], memory: int, refused: dict[str, int] | None = None) -> Choice:
    """Sort plans by whether they fit in ``memory`` bytes, and find the front of those that do.

    A plan beats another if it is at least as good in memory, tokens/s and recall and better in one of them. A plan of
    unknown recall beats only plans of unknown recall, and is beaten only by these: nothing is assumed of it.
    """
    fits = sorted(
        (candidate for candidate in found if candidate.memory <= memory),
        key=lambda candidate: (candidate.memory, candidate.key),
    )
    too_large = sorted(
        (candidate for candidate in found if candidate.memory > memory), key=lambda candidate: candidate.memory
    )
    front = [candidate for candidate in fits if not any(_beats(other, candidate) for other in fits)]
    return Choice(fits, front, too_large, dict(refused or {}))


def _beats(candidate: Candidate, other: Candidate) -> bool:
    if (candidate.recall is None) != (other.recall is None):
        return False
    gains = [other.memory - candidate.memory, candidate.tokens_per_second - other.tokens_per_second]
    if candidate.recall is not None and other.recall is not None:
        gains.append(candidate.recall.value - other.recall.value)
    return all(gain >= 0 for gain in gains) and any(gain > 0 for gain in gains)

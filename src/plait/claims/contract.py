"""What a claim is: a published statement, a small experiment, and a rule fixed before it runs.

A claim measures first and decides afterwards, from what it measured and nothing else. So a verdict can be decided
again from the evidence file by anyone, and a test does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from plait.drawing.lines import LinesFigure
from plait.study.summary import Verdict

#: A verdict, and what was seen, in words with figures.
Outcome = tuple[Verdict, str]
Announce = Callable[[str], None]


@dataclass(frozen=True)
class Measurement:
    """What an experiment gave.

    Args:
        data: plain JSON; all that the rule may look at.
        seconds: of computing, over all calls that led to it, those that were interrupted included.
        seeds: that it ran with.
        provenance: versions, machine and commit that it ran with.
    """

    data: dict[str, Any]
    seconds: float
    seeds: list[int]
    provenance: dict[str, Any]


class Claim(ABC):
    """A published statement with its experiment. A subclass fills in the texts and three methods.

    Attributes:
        sentence: what the paper claims, in one sentence.
        published: the paper's own figures for it.
        experiment: the small experiment in four lines: model, data, what is compared, what is measured.
        rule: when the claim holds, does not hold, or stays inconclusive.
        change: what would change the verdict.
    """

    sentence: ClassVar[str]
    published: ClassVar[str]
    experiment: ClassVar[tuple[str, str, str, str]]
    rule: ClassVar[str]
    change: ClassVar[str]

    @abstractmethod
    def measure(self, folder: Path, announce: Announce) -> Measurement:
        """Run the experiment; an interrupted one goes on where it stopped.

        Args:
            folder: where it keeps its work.
            announce: told of progress, a line at a time.
        """

    @abstractmethod
    def decide(self, data: dict[str, Any]) -> Outcome:
        """Apply the rule to what was measured; a pure function of ``data``."""

    @abstractmethod
    def figure(self, data: dict[str, Any]) -> LinesFigure:
        """What was measured, drawn."""


class Evidence(BaseModel):
    """The result of a claim's experiment, as its JSON file holds it.

    Args:
        claim: name in the catalogue.
        verdict, seen: by the rule.
        rule: in the words under which the verdict fell.
        data: what was measured.
        seeds: of the experiment.
        minutes: of computing.
        created: date of the decision.
        command: that makes it again.
        versions, machine, commit: that it ran with and on.
    """

    model_config = ConfigDict(extra="forbid")

    claim: str
    verdict: Verdict
    seen: str
    rule: str
    data: dict[str, Any]
    seeds: list[int]
    minutes: float
    created: str
    command: str
    versions: dict[str, str]
    machine: str
    commit: str | None = None

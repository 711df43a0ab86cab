"""Claims whose experiment is a study: its trials are run once and shared by all claims about it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from plait import catalog
from plait.claims.contract import Announce, Claim, Measurement, Outcome
from plait.errors import OptionError, StudyError
from plait.study.file import load_study, shipped_study
from plait.study.runner import check_models, run_trials
from plait.study.store import Store
from plait.study.summarise import summarise
from plait.study.summary import Configuration, Guard, Judgement, StudySummary
from plait.study.trials import trials


class ClaimFromStudy(Claim):
    """A claim that is decided on the configurations of a study.

    Attributes:
        study: name of a study that comes with plait.
        tracks: those of its tracks that the claims need.
        metrics: that the evidence keeps.
    """

    study: ClassVar[str]
    tracks: ClassVar[tuple[str, ...]]
    metrics: ClassVar[tuple[str, ...]]

    @abstractmethod
    def judge(self, configurations: Sequence[Configuration], guards: Sequence[Guard]) -> Outcome:
        """Apply the rule.

        Args:
            configurations: of the study, with the ``metrics``.
            guards: whether the transformer learnt each track.
        """

    def measure(self, folder: Path, announce: Announce) -> Measurement:
        path = shipped_study(self.study)
        study = load_study(path)
        study = study.model_copy(update={"tracks": {name: study.tracks[name] for name in self.tracks}})
        resolved = trials(study, str(path))
        check_models(resolved)
        store = Store(Path(folder).parent / self.study)
        announce(f"{len(resolved)} trials of {self.study}, in {store.folder}")
        store.write_study(study, str(path), f"plait study run {store.folder}")
        outcome = run_trials(store, resolved)
        if outcome.failed:
            raise StudyError(
                f"{len(outcome.failed)} of {len(resolved)} trials failed; 'plait study status {store.folder}' says why."
            )
        summary = summarise(store.folder)
        kept = [
            configuration.model_copy(
                update={
                    "metrics": {
                        name: configuration.metrics[name] for name in self.metrics if name in configuration.metrics
                    },
                    "parameters": {},
                    "cache_bytes": {},
                }
            )
            for configuration in summary.configurations
        ]
        data = {
            "configurations": [configuration.model_dump(mode="json") for configuration in kept],
            "guards": [guard.model_dump(mode="json") for guard in summary.guards],
        }
        seeds = sorted({trial.seed for trial in resolved})
        where = {"versions": summary.versions, "machine": summary.machine, "commit": summary.commit}
        return Measurement(data, summary.seconds, seeds, where)

    def decide(self, data: dict[str, Any]) -> Outcome:
        return self.judge(self.configurations(data), [Guard.model_validate(guard) for guard in data["guards"]])

    def configurations(self, data: dict[str, Any]) -> list[Configuration]:
        """The configurations that evidence holds."""
        return [Configuration.model_validate(configuration) for configuration in data["configurations"]]


def check_claims(names: Sequence[str]) -> None:
    """See that claims can be decided on a study.

    Args:
        names: in the catalogue.

    Raises:
        OptionError: one has an experiment of its own.
    """
    for name in names:
        _claim(name)


def judged(summary: StudySummary) -> StudySummary:
    """A study's summary with the claims that its file asks for, decided on what it measured.

    Args:
        summary: of the study, finished or not.

    Raises:
        OptionError: a claim that no study can decide.
    """
    claims = [_judgement(name, summary) for name in summary.study.get("claims", [])]
    return summary.model_copy(update={"claims": claims})


def _judgement(name: str, summary: StudySummary) -> Judgement:
    claim, method = _claim(name), catalog.get(name, "claim")
    verdict, seen = claim.judge(summary.configurations, summary.guards)
    return Judgement(
        name=name,
        title=method.title,
        paper=method.paper,
        sentence=claim.sentence,
        published=claim.published,
        rule=claim.rule,
        verdict=verdict,
        seen=seen,
    )


def _claim(name: str) -> ClaimFromStudy:
    kind = catalog.get(name, "claim").load()
    if not issubclass(kind, ClaimFromStudy):
        able = [method.name for method in catalog.methods("claim") if issubclass(method.load(), ClaimFromStudy)]
        raise OptionError(
            f"Claim {name!r} has an experiment of its own, 'plait claim run {name}', and cannot be decided on a study; "
            f"a study file can name {', '.join(able)}."
        )
    claim: ClaimFromStudy = kind()
    return claim

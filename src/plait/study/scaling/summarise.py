"""From the folder of a scaling study to its summary: loss logs, envelopes, fits, intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from plait.errors import DataError, StudyError
from plait.models.architecture import Architecture
from plait.study.scaling.allocation import Spread, exponent_intervals, optimal_allocation
from plait.study.scaling.envelope import Point, Run, changes, compute_envelope, smoothed
from plait.study.scaling.file import FitSection, ScalingFile
from plait.study.scaling.laws import Laws, PowerLaw
from plait.study.scaling.plan import PlanCount, plan_count
from plait.study.scaling.summary import (
    ArchitectureResult,
    Comparison,
    EnvelopePoint,
    FittedLaw,
    ScalingSummary,
    SizeResult,
)
from plait.study.store import Store
from plait.study.trials import Trial

#: The three laws, in the order of tables and charts.
LAWS = ("loss", "parameters", "tokens")


@dataclass(frozen=True)
class Logged:
    """A finished run: its trial, its record, what its layers cost and its loss log."""

    trial: Trial
    result: dict[str, Any]
    count: PlanCount
    run: Run


def summarise_scaling(scaling: ScalingFile, store: Store) -> ScalingSummary:
    """Everything that a report of the study says; runs that have not finished are left out and counted.

    Args:
        scaling: the study file.
        store: its folder, where at least one run has finished.

    Raises:
        StudyError: no run has finished, or a damaged file.
    """
    _, record = store.read_study()
    trials = store.trials()
    counts: dict[str, PlanCount] = {}
    logged = []
    for trial in trials:
        result = store.result(trial)
        if result is None:
            continue
        if trial.key not in counts:
            counts[trial.key] = plan_count(Architecture.of(trial.config).config, trial.config.data.length)
        count = counts[trial.key]
        logged.append(Logged(trial, result, count, read_run(trial, result, count)))
    if not logged:
        raise StudyError(f"No run of {store.folder} has finished, so there is nothing to fit; run the study first.")
    groups: dict[str, list[Logged]] = defaultdict(list)
    for entry in logged:
        groups[architecture_key(entry.trial)].append(entry)
    architectures = [_architecture(key, group, scaling.fit) for key, group in groups.items()]
    return ScalingSummary(
        name=scaling.name,
        description=scaling.description,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=record["command"],
        training_seconds=sum(entry.result["ended"] - entry.result["started"] for entry in logged),
        versions=logged[0].result["versions"],
        machine="; ".join(sorted({entry.result["machine"] for entry in logged})),
        commit=logged[0].result["commit"],
        architectures=architectures,
        comparison=_comparison(architectures),
        runs=len(trials),
        finished=len(logged),
        scaling=scaling.model_dump(mode="json"),
    )


def architecture_key(trial: Trial) -> str:
    """The name of a trial's architecture, which its sizes share."""
    model = trial.config.model
    return "transformer" if model.ratio == "full" else f"{model.mixer} {model.ratio}"


def read_run(trial: Trial, result: dict[str, Any], count: PlanCount) -> Run:
    """The loss log of a finished run against its compute.

    Args:
        trial: what was run.
        result: what it left; a logged loss is the mean over the steps since the one before.
        count: parameters and FLOPs of its layers.

    Raises:
        StudyError: the run was trained at a falling rate.
    """
    fraction = trial.config.training.final_fraction
    if fraction != 1.0:
        raise StudyError(
            f"{trial.label}: trained at a rate that falls to {fraction:g} of its peak; its loss along the way does not "
            "compare. Set training.final_fraction to 1."
        )
    size = str(trial.config.model.hidden_size)
    per_step = _tokens_per_step(trial, result)
    points = [
        Point(step * per_step * count.flops_per_token, loss, count.parameters, step * per_step, size)
        for step, loss in result["train"]["losses"]
    ]
    return Run(size, trial.seed, tuple(points))


def _tokens_per_step(trial: Trial, result: dict[str, Any]) -> float:
    return float(result["train"]["tokens"] / trial.config.training.steps)


def _architecture(key: str, group: Sequence[Logged], fit: FitSection) -> ArchitectureResult:
    runs = [entry.run for entry in group]
    skip = fit.skip_steps * _tokens_per_step(group[0].trial, group[0].result)
    points = smoothed(runs, fit.bins_per_decade, skip)
    if not points:
        raise StudyError(
            f"{key}: no loss was logged after step {fit.skip_steps}; lower fit.skip_steps, or train longer."
        )
    envelope = compute_envelope(points, fit.bins_per_decade)
    count, ended = changes(envelope, points)
    model = group[0].trial.config.model
    result = ArchitectureResult(
        key=key,
        mixer=model.mixer,
        ratio=model.ratio,
        sizes=_sizes(group, points, fit),
        envelope=[EnvelopePoint(**vars(point)) for point in envelope],
        low=envelope[0].flops,
        high=envelope[-1].flops,
        laws={},
        changes=count,
        ended=ended,
    )
    try:
        laws = optimal_allocation(envelope)
    except DataError as error:
        return result.model_copy(update={"reason": str(error)})
    spread = exponent_intervals(runs, fit.bins_per_decade, fit.resamples, fit.seed, skip)
    fitted = {name: _fitted(name, laws, spread) for name in LAWS}
    return result.model_copy(update={"laws": fitted, "resamples": spread.resamples if spread else 0})


def _sizes(group: Sequence[Logged], points: Sequence[Point], fit: FitSection) -> list[SizeResult]:
    by_size: dict[str, list[Logged]] = defaultdict(list)
    for entry in group:
        by_size[entry.run.size].append(entry)
    results = []
    for size, own in sorted(by_size.items(), key=lambda item: item[1][0].count.parameters):
        curve = sorted((point.flops, point.loss) for point in points if point.size == size)
        last = {entry.trial.seed: _last_loss(entry.run, fit.bins_per_decade) for entry in own}
        results.append(
            SizeResult(
                size=size,
                layers=Architecture.of(own[0].trial.config).layers,
                parameters=own[0].count.parameters,
                flops_per_token=own[0].count.flops_per_token,
                curve=curve,
                losses=last,
            )
        )
    return results


def _last_loss(run: Run, per_decade: int) -> float:
    return max(smoothed([run], per_decade), key=lambda point: point.flops).loss


def _fitted(name: str, laws: Laws, spread: Spread | None) -> FittedLaw:
    law: PowerLaw = getattr(laws, name)
    assert law.residual is not None
    assert law.largest is not None
    return FittedLaw(
        coefficient=law.coefficient,
        exponent=law.exponent,
        interval=getattr(spread, name) if spread else None,
        residual=law.residual,
        largest=law.largest,
    )


def _comparison(architectures: Sequence[ArchitectureResult]) -> Comparison | None:
    fitted = [architecture for architecture in architectures if architecture.laws]
    if len(fitted) < 2:
        return None
    flops = min(architecture.high for architecture in fitted)
    if flops < max(architecture.low for architecture in fitted):
        return None
    laws = {architecture.key: architecture.laws["loss"] for architecture in fitted}
    return Comparison(flops=flops, losses={key: law.coefficient * flops**law.exponent for key, law in laws.items()})

"""From the folder of a study to its summary: configurations, guards, recommendation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plait.models.architecture import Architecture
from plait.statistics.comparisons import pareto
from plait.statistics.interval import Interval
from plait.study.file import StudyFile
from plait.study.recommend import recommend
from plait.study.scores import (
    decode_metrics,
    further_metrics,
    recall_metrics,
    task_metrics,
    text_baselines,
    text_metrics,
)
from plait.study.store import LOG, Store
from plait.study.summary import Configuration, Curve, FailedTrial, Guard, StudySummary, TextBaselines
from plait.study.trials import Trial


@dataclass(frozen=True)
class Finished:
    """A trial with what it measured."""

    trial: Trial
    result: dict[str, Any]

    @property
    def evaluation(self) -> dict[str, Any]:
        return self.result["evaluation"]


def summarise(folder: Path) -> StudySummary:
    """Everything that a report of the study says; trials that have not finished are left out and counted.

    Args:
        folder: of a study that has been run, at least in part.

    Raises:
        StudyError: the folder holds no study, or a damaged file.
    """
    store = Store(Path(folder))
    study, record = store.read_study()
    trials = store.trials()
    finished = [Finished(trial, result) for trial in trials if (result := store.result(trial)) is not None]
    configurations = _configurations(study, finished)
    guards = _guards(study, configurations)
    complete = len(finished) == len(trials)
    return StudySummary(
        name=study.name,
        description=study.description,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=record["command"],
        seconds=_busy_seconds(finished),
        versions=finished[0].result["versions"] if finished else {},
        machine="; ".join(sorted({run.result["machine"] for run in finished})),
        commit=finished[0].result["commit"] if finished else None,
        tracks={name: track.kind for name, track in study.tracks.items()},
        configurations=configurations,
        pareto=_front(configurations, max(study.contexts)),
        curves=[_curve(run) for run in finished],
        guards=guards,
        recommendation=recommend(study, configurations, guards, complete),
        baselines=_baselines(finished),
        failed=[_failed(store, trial) for trial in trials if store.error(trial) is not None],
        trials=len(trials),
        finished=len(finished),
        study=study.model_dump(mode="json"),
    )


def _busy_seconds(finished: Iterable[Finished]) -> float:
    """Wall-clock time during which at least one of the trials ran."""
    busy, last = 0.0, 0.0
    for start, end in sorted((run.result["started"], run.result["ended"]) for run in finished):
        busy += max(0.0, end - max(start, last))
        last = max(last, end)
    return busy


def _configurations(study: StudyFile, finished: Sequence[Finished]) -> list[Configuration]:
    """One per key, in the order of the study; those without a finished trial are absent."""
    groups: dict[str, list[Finished]] = defaultdict(list)
    for run in finished:
        groups[run.trial.key].append(run)
    return [_configuration(study, key, group) for key, group in groups.items()]


def _configuration(study: StudyFile, key: str, group: list[Finished]) -> Configuration:
    by_track: dict[str, list[Finished]] = defaultdict(list)
    for run in group:
        by_track[run.trial.track].append(run)
    deployed = min(by_track.values(), key=lambda track: track[0].trial.kind != "lm")[0]
    model, architecture = deployed.trial.config.model, Architecture.of(deployed.trial.config)
    metrics: dict[str, Interval] = {}
    for track in by_track.values():
        metrics |= _track_metrics(track)
    return Configuration(
        key=key,
        mixer=model.mixer if model.layer_types is None else "+".join(dict.fromkeys(model.layer_types)),
        ratio=model.ratio if model.layer_types is None else "explicit",
        placement=model.placement,
        n_linear=architecture.layers - len(architecture.full_layers),
        n_full=len(architecture.full_layers),
        full_layers=architecture.full_layers,
        parameters={name: track[0].evaluation["parameters"] for name, track in by_track.items()},
        cache_bytes={T: architecture.cache_bytes(T) for T in sorted(study.contexts)},
        metrics={**metrics, **_decode_metrics([deployed, *group])},
        seeds={name: [run.trial.seed for run in track] for name, track in by_track.items()},
        fields=deployed.trial.fields,
        mlp_width=architecture.config.mlp_size if study.match_parameters else None,
    )


def _track_metrics(track: list[Finished]) -> dict[str, Interval]:
    """What a track measures by its kind, and what else its file asks for."""
    trial, evaluations = track[0].trial, [run.evaluation for run in track]
    further = further_metrics(trial.track, evaluations)
    if trial.kind == "task":
        return task_metrics(trial.track, evaluations) | further
    return (text_metrics(evaluations) if trial.kind == "lm" else recall_metrics(evaluations)) | further


def _baselines(finished: Iterable[Finished]) -> list[TextBaselines]:
    """One for each text that models were measured on, with the configurations that were."""
    texts: dict[str, TextBaselines] = {}
    for run in finished:
        measured = text_baselines(run.evaluation)
        if measured is None:
            continue
        ngram = measured["ngram"] or {}
        text = TextBaselines(
            track=run.trial.track,
            keys=[],
            bytes=measured["bytes"],
            gzip=measured["gzip"],
            xz=measured["xz"],
            ngram=ngram.get("bits_per_byte"),
            ngram_length=ngram.get("length"),
            train_bytes=ngram.get("train_bytes"),
        )
        keys = texts.setdefault(text.model_dump_json(), text).keys
        if run.trial.key not in keys:
            keys.append(run.trial.key)
    return list(texts.values())


def _decode_metrics(group: Iterable[Finished]) -> dict[str, Interval]:
    """Speed of the first track that measured it, over its seeds."""
    by_track: dict[str, list[Finished]] = defaultdict(list)
    for run in {run.trial.hash: run for run in group}.values():
        by_track[run.trial.track].append(run)
    tables = (decode_metrics([run.evaluation for run in track]) for track in by_track.values())
    return next((metrics for metrics in tables if metrics), {})


def _curve(run: Finished) -> Curve:
    points = [(int(step), float(loss)) for step, loss in run.result["train"]["losses"]]
    return Curve(key=run.trial.key, track=run.trial.track, seed=run.trial.seed, points=points)


def _front(configurations: Iterable[Configuration], context: int) -> list[str]:
    measured = [configuration for configuration in configurations if "recall" in configuration.metrics]
    return pareto(
        {
            configuration.key: (configuration.cache_bytes[context], configuration.metrics["recall"].mean)
            for configuration in measured
        }
    )


def _guards(study: StudyFile, configurations: Sequence[Configuration]) -> list[Guard]:
    """Whether a transformer learnt each track that has a threshold; of several the best counts."""
    metrics = {name: "recall" if track.kind == "recall" else f"task:{name}" for name, track in study.tracks.items()}
    return [
        _guard(name, metrics[name], track.learnt, configurations)
        for name, track in study.tracks.items()
        if track.learnt is not None
    ]


def _guard(track: str, metric: str, threshold: float, configurations: Sequence[Configuration]) -> Guard:
    baselines = [
        configuration
        for configuration in configurations
        if configuration.ratio == "full" and metric in configuration.metrics
    ]
    best = max(baselines, key=lambda configuration: configuration.metrics[metric].mean, default=None)
    accuracy = best.metrics[metric].mean if best else None
    learnt = accuracy is not None and accuracy >= threshold
    what = "recall" if metric == "recall" else "accuracy"
    if accuracy is None:
        message = f"Track {track!r} has no finished transformer, so nothing shows that it can be learnt."
    elif learnt:
        message = (
            f"The transformer learnt track {track!r}: {what} {accuracy:.3f}, at least {threshold:g} was asked for."
        )
    else:
        message = (
            f"The transformer did not learn track {track!r} ({what} {accuracy:.3f}, {threshold:g} was asked for), "
            "so its results say nothing about mixers; train longer or make the task easier."
        )
    return Guard(
        track=track,
        metric=metric,
        baseline=best.key if best else "transformer",
        accuracy=accuracy,
        threshold=threshold,
        learnt=learnt,
        message=message,
    )


def _failed(store: Store, trial: Trial) -> FailedTrial:
    error = store.error(trial) or {"error": ""}
    log = store.path(trial) / LOG
    return FailedTrial(
        trial=trial.hash, key=trial.key, track=trial.track, seed=trial.seed, error=error["error"], log=str(log)
    )

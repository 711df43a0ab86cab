"""The result of a study as plain data: what ``report.json`` holds and what the report draws."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from plait.statistics.interval import Interval

Verdict = Literal["holds", "does not hold", "inconclusive"]


class Configuration(BaseModel):
    """One architecture of the grid, its seeds taken together.

    Args:
        key: unique label, such as ``gated_deltanet 3:1``.
        mixer, ratio, placement: as in the study file; the transformer is ``attention`` / ``full``.
        n_linear, n_full, full_layers: counts and indices, since papers mean different things by "3:1".
        parameters: trainable parameters, by track.
        cache_bytes: bytes held by one sequence at each context length (computed from ``cost``).
        metrics: by name. LM track: ``loss``, ``bits_per_byte``, ``ar_loss``, ``other_loss``; recall track:
            ``recall`` (mean over settings) and ``recall@LENGTHxPAIRS``; a track of tasks: ``task:TRACK`` (mean over
            its tasks) and ``task:TRACK@TASK``; suites of any track: ``suite:TRACK@NAME, UNIT``; speed:
            ``decode@CONTEXT`` in tokens/s.
        seeds: seeds by track.
        fields: further grid fields by dotted key.
        mlp_width: of the feed-forward, where the study chose it to match parameters.
    """

    key: str
    mixer: str
    ratio: str
    placement: str
    n_linear: int
    n_full: int
    full_layers: list[int]
    parameters: dict[str, int]
    cache_bytes: dict[int, int]
    metrics: dict[str, Interval]
    seeds: dict[str, list[int]]
    fields: dict[str, Any] = {}
    mlp_width: int | None = None


class Curve(BaseModel):
    """Training loss of one trial: ``points`` are (step, loss)."""

    key: str
    track: str
    seed: int
    points: list[tuple[int, float]]


class Guard(BaseModel):
    """Whether the transformer learnt a track by its ``metric``; if not, that track proves nothing."""

    track: str
    metric: str = "recall"
    baseline: str
    accuracy: float | None
    threshold: float
    learnt: bool
    message: str


class Recommendation(BaseModel):
    """The answer: a configuration and why, in at most two sentences with figures; None when nothing can be said."""

    key: str | None
    sentences: list[str]


class Judgement(BaseModel):
    """A claim that the study's file asks for, decided on this study; the names are those of the catalogue."""

    name: str
    title: str
    paper: str
    sentence: str
    published: str
    rule: str
    verdict: Verdict
    seen: str


class TextBaselines(BaseModel):
    """What other means make of the text that models were measured on, in bits per byte of the same bytes.

    Args:
        track: whose text it is.
        keys: configurations that were measured on it.
        bytes: how many bytes were predicted.
        gzip, xz: the compressors, on these bytes alone.
        ngram: byte n-gram of the training split; None where it has no text.
        ngram_length, train_bytes: its length, and the bytes it was counted on.
    """

    track: str
    keys: list[str]
    bytes: int
    gzip: float
    xz: float
    ngram: float | None
    ngram_length: int | None
    train_bytes: int | None


class FailedTrial(BaseModel):
    """A trial that ended in an error."""

    trial: str
    key: str
    track: str
    seed: int
    error: str
    log: str


class StudySummary(BaseModel):
    """Everything that a report says."""

    name: str
    description: str
    created: str
    command: str
    seconds: float
    versions: dict[str, str]
    machine: str
    commit: str | None = None
    tracks: dict[str, str]
    configurations: list[Configuration]
    pareto: list[str]
    curves: list[Curve]
    guards: list[Guard]
    recommendation: Recommendation
    claims: list[Judgement] = []
    baselines: list[TextBaselines] = []
    failed: list[FailedTrial]
    trials: int
    finished: int
    study: dict[str, Any]

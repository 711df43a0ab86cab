"""The result of a study as plain data: what ``report.json`` holds and what the report draws."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from plait.statistics.interval import Interval

Verdict = Literal["holds", "does not hold", "inconclusive"]


class Learning(BaseModel):
    """How far a configuration has come on a track of recall or of a task.

    Args:
        state: ``not learnt``: at the smallest load it is still near the plateau of guessing (among a row's values, or
            by chance); ``falls with load``: it has left the plateau, but reaches the track's threshold at some loads
            only; ``learnt``: it reaches the threshold at every load.
        metric: of the smallest load.
        accuracy: there, mean over seeds.
        plateau: what guessing scores there.
        threshold: below which nothing has been learnt.
        stuck: seeds below it, whatever the mean says.
    """

    state: Literal["learnt", "falls with load", "not learnt"]
    metric: str
    accuracy: float
    plateau: float
    threshold: float
    stuck: list[int] = []


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
        values: metric -> seed -> value, of which ``metrics`` holds the mean; differences are paired by seed.
        seeds: seeds by track.
        learnt: by track of recall or of a task; no claim and no recommendation uses what has not learnt.
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
    values: dict[str, dict[int, float]] = {}
    seeds: dict[str, list[int]]
    learnt: dict[str, Learning] = {}
    fields: dict[str, Any] = {}
    mlp_width: int | None = None


class Curve(BaseModel):
    """Training loss of one trial: ``points`` are (step, loss)."""

    key: str
    track: str
    seed: int
    points: list[tuple[int, float]]


class Guard(BaseModel):
    """Whether a track can tell configurations apart by its ``metric``.

    Args:
        track, metric: what is guarded.
        baseline: key of the transformer.
        accuracy: that it reached; of a track of kind ``lm`` the bits per byte of the best configuration.
        threshold: that it had to reach; of a track of kind ``lm`` the n-gram's bits per byte, to stay below.
        learnt: whether it did.
        separates: whether the track sets configurations apart: no pure mixer solves every load of recall, or some
            pair of configurations differs in loss; None where the grid holds nothing that could show it.
        message: in words.
    """

    track: str
    metric: str = "recall"
    baseline: str
    accuracy: float | None
    threshold: float
    learnt: bool
    separates: bool | None = None
    message: str

    @property
    def tells(self) -> bool:
        """Whether conclusions may be drawn from the track."""
        if self.metric == "loss":
            return self.learnt or self.separates is True
        return self.learnt and self.separates is not False


class Comparison(BaseModel):
    """The difference of two configurations in one metric, paired by seed.

    Args:
        key, against: the difference is ``key`` minus ``against``.
        track, metric: what was measured.
        n: seeds that both have.
        difference: mean with Student's 95 % interval.
        bootstrap: the same mean with the bootstrap's.
        p: two-sided, of the paired t test; None with one seed.
        p_holm: the same corrected over all comparisons of this track and metric (Holm, 1979).
        level: of the strictest of these tests, 0.05 over their number.
        detectable: difference that this many seeds show with a chance of 0.8 at that level; None with one seed.
        bound: within which the study's file calls two configurations equivalent; None where it names none.
        equivalent: whether both one-sided tests at 5 % say so; None without bound or with one seed.
        verdict: ``better`` or ``worse`` where ``p_holm`` is below 0.05 (which may be a difference within the bound),
            else ``equivalent``, else ``undecided``.
    """

    key: str
    against: str
    track: str
    metric: str
    n: int
    difference: Interval
    bootstrap: Interval
    p: float | None
    p_holm: float | None
    level: float
    detectable: float | None
    bound: float | None
    equivalent: bool | None
    verdict: Literal["better", "worse", "equivalent", "undecided"]


class Exclusion(BaseModel):
    """What no conclusion uses, and why.

    Args:
        key: a configuration; None for a whole track.
        track: where.
        why: a sentence.
    """

    key: str | None
    track: str
    why: str


class Choice(BaseModel):
    """A row of "if you must remember N facts".

    Args:
        pairs: N; None where the study measures no recall and loss alone decides.
        length: of the longest row in which so many were measured.
        key: configuration with the smallest cache that keeps recall, at this load and below, and loss; None: none.
        runner_up: the next of those that do.
        cache_bytes: of one sequence at the answer's context.
        recall: at this load.
        recall_difference: to the transformer at this load, paired by seed.
        loss_difference: to the transformer, in nats per token, paired by seed.
        why: a sentence: what it costs, or why nothing qualifies.
    """

    pairs: int | None
    length: int | None
    key: str | None
    runner_up: str | None = None
    cache_bytes: int | None = None
    recall: Interval | None = None
    recall_difference: Interval | None = None
    loss_difference: Interval | None = None
    why: str


class Answer(BaseModel):
    """The smallest cache for each load, and how far that reaches.

    Args:
        context: tokens at which caches are quoted, at most four times ``longest_row``.
        longest_row: tokens of the longest row that was measured on any track.
        recall_margin: how far below the transformer's accuracy recall may lie.
        loss_margin: how far above the transformer's loss the loss may lie, in nats per token; None without loss.
        choices: by rising load; empty where nothing can be said.
        change: sentences: what would change the answer.
    """

    context: int
    longest_row: int
    recall_margin: float
    loss_margin: float | None
    choices: list[Choice]
    change: list[str] = []


class Recommendation(BaseModel):
    """The answer: a configuration and why, in two or three sentences with figures; None when nothing can be said."""

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
    comparisons: list[Comparison] = []
    excluded: list[Exclusion] = []
    answer: Answer | None = None
    recommendation: Recommendation
    claims: list[Judgement] = []
    baselines: list[TextBaselines] = []
    failed: list[FailedTrial]
    trials: int
    finished: int
    study: dict[str, Any]

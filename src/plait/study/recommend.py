"""The answer of a study: which configuration to take, by a rule that is fixed before it runs."""

from __future__ import annotations

from collections.abc import Sequence

from plait.statistics.comparisons import below
from plait.statistics.interval import Interval
from plait.study.file import StudyFile
from plait.study.summary import Configuration, Guard, Recommendation


def recommend(
    study: StudyFile, configurations: Sequence[Configuration], guards: Sequence[Guard], complete: bool = True
) -> Recommendation:
    """The configuration that decodes in the least memory without losing quality.

    The rule. A configuration qualifies if (1) its recall interval does not lie below the transformer's and its mean
    recall is at most ``recall_tolerance`` below the transformer's mean, and (2) its mean loss is at most
    ``loss_tolerance`` above the lowest. Among those, the one with the fewest cache bytes at the longest context of
    the study is recommended; ties go to the higher recall, then to the lower loss. A study with one of the two tracks
    applies its half of the rule. A recall track that the transformer did not learn gives no recommendation. Tracks of
    tasks have no say.

    Args:
        study: holds the thresholds and contexts.
        configurations: what was measured.
        guards: of the tracks; only that of recall matters here.
        complete: whether every trial has finished; the text says so if not.

    Returns:
        At most two sentences, with figures.
    """
    void = next((guard for guard in guards if guard.metric == "recall" and not guard.learnt), None)
    if void is not None:
        return Recommendation(key=None, sentences=[f"No recommendation: {_lower(void.message)}"])
    lm, recall = study.track_of("lm") is not None, study.track_of("recall") is not None
    if not (lm or recall):
        return Recommendation(
            key=None,
            sentences=["No recommendation: the rule compares loss and recall, and the study has no such track."],
        )
    needed = [name for name, wanted in (("loss", lm), ("recall", recall)) if wanted]
    measured = [
        configuration for configuration in configurations if all(name in configuration.metrics for name in needed)
    ]
    if not measured:
        return Recommendation(key=None, sentences=["No recommendation: no configuration has finished every track."])
    transformers = [configuration for configuration in measured if configuration.ratio == "full"]
    if recall and not transformers:
        return Recommendation(
            key=None, sentences=["No recommendation: the study has no transformer to compare recall with."]
        )
    target = max(transformers, key=lambda configuration: configuration.metrics["recall"].mean) if recall else None
    lowest = min((configuration.metrics["loss"].mean for configuration in measured), default=0.0) if lm else 0.0
    context = max(study.contexts)

    def qualifies(configuration: Configuration) -> bool:
        if lm and configuration.metrics["loss"].mean > lowest * (1 + study.thresholds.loss_tolerance):
            return False
        return target is None or _keeps_recall(configuration.metrics["recall"], target.metrics["recall"], study)

    def order(configuration: Configuration) -> tuple[float, float, float]:
        return (
            configuration.cache_bytes[context],
            -configuration.metrics["recall"].mean if recall else 0.0,
            configuration.metrics["loss"].mean if lm else 0.0,
        )

    chosen = min(filter(qualifies, measured), key=order, default=None)
    if chosen is None:
        sentence = f"No recommendation: no configuration {_conditions(study, lm, recall)}."
        return Recommendation(key=None, sentences=[sentence])
    return Recommendation(key=chosen.key, sentences=_sentences(study, chosen, measured, lowest, lm, recall, complete))


def _keeps_recall(recall: Interval, target: Interval, study: StudyFile) -> bool:
    return not below(recall, target) and recall.mean >= target.mean - study.thresholds.recall_tolerance


def _sentences(
    study: StudyFile,
    chosen: Configuration,
    measured: Sequence[Configuration],
    lowest: float,
    lm: bool,
    recall: bool,
    complete: bool,
) -> list[str]:
    context = max(study.contexts)
    size = chosen.cache_bytes[context]
    transformer = next((configuration for configuration in measured if configuration.ratio == "full"), None)
    compared = ""
    if transformer is chosen:
        compared = ", as no hybrid keeps its quality in less"
    elif transformer is not None:
        compared = f", {transformer.cache_bytes[context] / size:.1f} times less than the transformer"
    first = (
        f"Take {chosen.key} ({chosen.n_linear} linear and {chosen.n_full} full layers): "
        f"it holds {_bytes(size)} at {context:,} tokens{compared}."
    )
    parts = []
    if recall:
        value = f"recall is {_span(chosen.metrics['recall'])}"
        other = transformer is not None and transformer is not chosen
        parts.append(
            value
            + (f" against {_span(transformer.metrics['recall'])} of the transformer" if transformer and other else "")
        )
    if lm:
        excess = chosen.metrics["loss"].mean / lowest - 1
        parts.append(
            f"loss is {_span(chosen.metrics['loss'])}, "
            + (f"{excess:.1%} above the lowest" if excess > 0 else "the lowest")
        )
    notes = []
    if not all(
        interval.over == "seeds"
        for interval in (chosen.metrics[name] for name in ("recall", "loss") if name in chosen.metrics)
    ):
        notes.append("one seed, so the spread between seeds is not known")
    if not complete:
        notes.append("the study has not finished")
    second = " and ".join(parts) + (f" ({'; '.join(notes)})" if notes else "") + "."
    return [first, second[0].upper() + second[1:]]


def _conditions(study: StudyFile, lm: bool, recall: bool) -> str:
    parts = []
    if recall:
        parts.append(f"keeps recall within {study.thresholds.recall_tolerance:g} of the transformer")
    if lm:
        parts.append(f"has a loss within {study.thresholds.loss_tolerance:.0%} of the lowest")
    return " and ".join(parts)


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def _span(interval: Interval) -> str:
    return (
        f"{interval.mean:.3f}"
        if interval.over == "none"
        else f"{interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f})"
    )


def _bytes(size: int) -> str:
    value, units = float(size), ["B", "KiB", "MiB", "GiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.4g} {units[0]}"

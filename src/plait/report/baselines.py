"""The language loss of a study beside compressors and counts of bytes: whether its models learnt anything."""

from __future__ import annotations

from dataclasses import dataclass

from plait.report import labels
from plait.study.summary import StudySummary, TextBaselines


@dataclass(frozen=True)
class Standing:
    """One row of the comparison.

    Args:
        name: of the model or means.
        bits: bits per byte.
        model: whether it is a configuration of the study.
    """

    name: str
    bits: float
    model: bool


def standings(summary: StudySummary, text: TextBaselines) -> list[Standing]:
    """Compressors, counts and the best and worst configuration, the best first."""
    rows = [Standing("gzip", text.gzip, False), Standing("xz", text.xz, False)]
    if text.ngram is not None:
        rows.append(Standing(ngram_name(text), text.ngram, False))
    measured = [
        configuration
        for configuration in summary.configurations
        if configuration.key in text.keys and "bits_per_byte" in configuration.metrics
    ]
    ranked = sorted(measured, key=lambda configuration: configuration.metrics["bits_per_byte"].mean)
    rows += [
        Standing(configuration.key, configuration.metrics["bits_per_byte"].mean, True)
        for configuration in ranked[:1] + ranked[1:][-1:]
    ]
    return sorted(rows, key=lambda row: row.bits)


def verdict(summary: StudySummary, text: TextBaselines) -> str:
    """Whether models beat counts of bytes, in one sentence."""
    rows = standings(summary, text)
    models = [row for row in rows if row.model]
    others = [row for row in rows if not row.model]
    if not models:
        return ""
    best, rival = models[0], others[0]
    if best.bits >= rival.bits:
        return (
            f"No model beats {rival.name} ({labels.number('bits_per_byte', rival.bits)} bits per byte): they have "
            "learnt less than counting bytes gives, so compare their losses with care."
        )
    worse = sum(row.bits >= rival.bits for row in models)
    tail = "" if not worse else f" {models[-1].name} does not."
    return f"{best.name} beats {rival.name}, the best of them.{tail}"


def ngram_name(text: TextBaselines) -> str:
    """Such as ``byte 4-gram``."""
    return f"byte {text.ngram_length}-gram"


def note(text: TextBaselines) -> str:
    """What the figures rest on."""
    counted = (
        ""
        if text.train_bytes is None
        else (
            f" The n-gram has Witten-Bell smoothing, is counted on {labels.integer(text.train_bytes)} bytes of the "
            "training split, and its length was chosen there."
        )
    )
    return f"All on the same {labels.integer(text.bytes)} held-out bytes; gzip and xz see only these.{counted}"

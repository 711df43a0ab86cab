"""The result of a scaling study as plain data: what ``report.json`` holds and what the page draws."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class FittedLaw(BaseModel):
    """y = coefficient * FLOPs^exponent between the ends of the architecture's range, and nowhere else.

    Args:
        coefficient, exponent: of the fit.
        interval: 95 % of the exponent over resampled runs; None where too few draws have a fit.
        residual: root mean square of log(y) - log(fit).
        largest: the largest of these, as an absolute value.
    """

    coefficient: float
    exponent: float
    interval: tuple[float, float] | None
    residual: float
    largest: float


class EnvelopePoint(BaseModel):
    """The size with the lowest loss at some compute: FLOPs, nats per token, parameters, tokens seen, width."""

    flops: float
    loss: float
    parameters: int
    tokens: float
    size: str


class SizeResult(BaseModel):
    """One size of an architecture, its seeds taken together.

    Args:
        size: its width.
        layers: depth.
        parameters: without embedding, last norm and head.
        flops_per_token: of training, without embedding and head.
        curve: FLOPs and training loss, the mean over seeds in each bin of compute, as far as they are fitted.
        losses: mean training loss of the last bin, by seed.
    """

    size: str
    layers: int
    parameters: int
    flops_per_token: float
    curve: list[tuple[float, float]]
    losses: dict[int, float]


class ArchitectureResult(BaseModel):
    """One architecture.

    Args:
        key: its name, such as ``gated_deltanet 3:1``.
        mixer, ratio: as in the study file; the transformer is ``attention`` / ``full``.
        sizes: from the narrowest to the widest.
        envelope: the lowest loss for each amount of compute.
        low, high: FLOPs that the fits range over.
        laws: of ``loss``, ``parameters`` and ``tokens``; empty without a fit.
        reason: why there is no fit.
        resamples: draws that the intervals come from.
        changes: of the best size along the envelope.
        ended: those of them where the runs of the old size had ended.
    """

    key: str
    mixer: str
    ratio: str
    sizes: list[SizeResult]
    envelope: list[EnvelopePoint]
    low: float
    high: float
    laws: dict[str, FittedLaw]
    reason: str = ""
    resamples: int = 0
    changes: int = 0
    ended: int = 0


class Comparison(BaseModel):
    """The fitted loss of all architectures at one compute, the largest that lies in the range of each."""

    flops: float
    losses: dict[str, float]


class ScalingSummary(BaseModel):
    """Everything that the report of a scaling study says.

    Args:
        training_seconds: added up over the runs, from each one's start to its end.
        scaling: the study file.
    """

    name: str
    description: str
    created: str
    command: str
    training_seconds: float
    versions: dict[str, str]
    machine: str
    commit: str | None = None
    architectures: list[ArchitectureResult]
    comparison: Comparison | None
    runs: int
    finished: int
    scaling: dict[str, Any]

"""The fits of a scaling study as rows of text, for the terminal and for the page."""

from __future__ import annotations

from plait.study.scaling.summary import ArchitectureResult, FittedLaw, ScalingSummary

HEADER = ["architecture", "FLOPs of the fit", "L(C)", "N(C)", "D(C)", "residual of L", "loss at equal C"]
MISSING = "–"


def rows(summary: ScalingSummary) -> list[list[str]]:
    """One row for each architecture, under :data:`HEADER`: range, exponents with 95 % intervals, residual, loss."""
    return [_row(architecture, summary) for architecture in summary.architectures]


def notes(summary: ScalingSummary) -> list[str]:
    """What a reader of the table has to know, a sentence each."""
    said = [
        "L is the training loss, N the best size without embedding and head, D the tokens it has seen: each grows as a "
        "power of the training FLOPs C; shown is the exponent.",
        "Fits hold only inside their range of FLOPs; nothing is extrapolated.",
    ]
    intervals = [law.interval for architecture in summary.architectures for law in architecture.laws.values()]
    if any(interval is not None for interval in intervals):
        said.append("Intervals are 95 %, over runs drawn with replacement.")
    elif intervals:
        said.append("There are too few runs for intervals.")
    said += [
        f"{architecture.key}: the best size changes {architecture.changes} times, {architecture.ended} of them "
        "where the runs of the old one end; there N(C) and D(C) follow the length of the runs."
        for architecture in summary.architectures
        if architecture.laws and architecture.ended
    ]
    if summary.comparison:
        said.append(
            f"Equal C is {summary.comparison.flops:.3g} FLOPs, the most that every fit reaches; the loss is in nats."
        )
    said += [
        f"{architecture.key} has no fit: {architecture.reason}"
        for architecture in summary.architectures
        if architecture.reason
    ]
    if summary.finished < summary.runs:
        said.append(f"{summary.finished} of {summary.runs} runs have finished; the rest may change the fits.")
    return said


def _row(architecture: ArchitectureResult, summary: ScalingSummary) -> list[str]:
    reach = f"{architecture.low:.2g} to {architecture.high:.2g}"
    if not architecture.laws:
        return [architecture.key, reach, *[MISSING] * (len(HEADER) - 2)]
    loss = architecture.laws["loss"]
    residual = f"{loss.residual:.1%} (at most {loss.largest:.1%})"
    equal = f"{summary.comparison.losses[architecture.key]:.3f}" if summary.comparison else MISSING
    return [
        architecture.key,
        reach,
        *(_exponent(architecture.laws[name]) for name in ("loss", "parameters", "tokens")),
        residual,
        equal,
    ]


def _exponent(law: FittedLaw) -> str:
    if law.interval is None:
        return f"{law.exponent:.3f}"
    low, high = law.interval
    return f"{law.exponent:.3f} ({low:.3f} to {high:.3f})"

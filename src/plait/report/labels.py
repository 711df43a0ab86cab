"""How numbers, ratios and intervals are written for readers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import datetime

from plait.statistics.interval import Interval
from plait.study.summary import Configuration

#: What every chart and table calls a metric: (name, unit).
METRICS: dict[str, tuple[str, str]] = {
    "bits_per_byte": ("Held-out loss", "bits per byte"),
    "loss": ("Held-out loss", "nats per token"),
    "ar_loss": ("Loss on AR hits", "nats per token"),
    "other_loss": ("Loss on other tokens", "nats per token"),
    "recall": ("Recall", "mean accuracy"),
}
MISSING = "–"
_RATIO = re.compile(r"(\d+):1")


def metric_name(metric: str) -> tuple[str, str]:
    """Name and unit of a metric, such as ``("Recall, 256 tokens, 32 pairs", "accuracy")``."""
    kind, _, setting = metric.partition("@")
    source, _, track = kind.partition(":")
    if source == "task":
        return f"{track}: {setting}" if setting else track, "accuracy"
    if source == "suite":
        measured, _, unit = setting.rpartition(", ")
        return f"{track}: {measured}", unit
    if setting and kind == "recall":
        length, _, pairs = setting.partition("x")
        return f"Recall, {length} tokens, {pairs} pairs", "accuracy"
    if setting and kind == "decode":
        return f"Decoding at {integer(int(setting))} tokens", "tokens/s"
    return METRICS.get(metric, (metric, ""))


def short_name(metric: str) -> str:
    """A metric as the heading of a narrow column: ``bits per byte``, ``recall``, the name of a track."""
    return "bits per byte" if metric == "bits_per_byte" else metric.removeprefix("task:")


def ratio_order(ratio: str) -> tuple[int, int, str]:
    """Sort key that puts ratios from pure over 24:1, 12:1, ... to full; other labels stand before full."""
    match = _RATIO.fullmatch(ratio)
    if match:
        return 1, -int(match[1]), ratio
    return {"pure": 0, "full": 3}.get(ratio, 2), 0, ratio


def ordered_ratios(configurations: Iterable[Configuration]) -> list[str]:
    """The ratios of a study from pure to full."""
    return sorted({configuration.ratio for configuration in configurations}, key=ratio_order)


def integer(value: int) -> str:
    """``16384`` as ``16,384``."""
    return f"{value:,}"


def count(value: int) -> str:
    """A parameter count: ``1.24 M``."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)


def byte_size(value: float) -> str:
    """Bytes in binary units: ``96 KiB``, ``1.5 MiB``."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            scaled = value / size
            return f"{scaled:,.0f} {unit}" if scaled >= 100 or scaled == int(scaled) else f"{scaled:.3g} {unit}"
    return f"{value:,.0f} B"


def duration(seconds: float) -> str:
    """``5025`` as ``1 h 24 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours else f"{minutes} min"


def number(metric: str, value: float) -> str:
    """A metric's value with the digits that it deserves."""
    if not math.isfinite(value):
        return MISSING
    return f"{value:,.0f}" if metric.startswith("decode@") else f"{value:.3f}"


def guess(interval: Interval | None) -> str:
    """What a guess would score, where that is known: ``chance 0.167``."""
    return f"chance {interval.chance:.3f}" if interval is not None and interval.chance is not None else ""


def finite(interval: Interval | None) -> bool:
    """Whether there is a value that can be drawn."""
    return interval is not None and all(math.isfinite(end) for end in (interval.mean, interval.low, interval.high))


def span(metric: str, interval: Interval) -> str:
    """The ends of an interval: ``0.981 to 0.994``; empty when there is none."""
    if interval.over == "none" or not finite(interval):
        return ""
    return f"{number(metric, interval.low)} to {number(metric, interval.high)}"


def basis(metric: str, interval: Interval) -> str:
    """What an interval is taken over: ``3 seeds``, ``500 held-out windows of one seed``, ``one value, no interval``."""
    if interval.over == "none":
        return "one value, no interval"
    return f"{interval.n} {_units(metric, interval)}"


def interval_note(measured: Iterable[tuple[str, Interval]]) -> str:
    """One sentence on what the intervals of a chart or table are taken over.

    Args:
        measured: metric and value of everything that is shown.
    """
    counts: dict[str, set[int]] = {}
    single = False
    for metric, interval in measured:
        if interval.over == "none":
            single = True
        else:
            counts.setdefault(_units(metric, interval), set()).add(interval.n)
    if not counts:
        return "One value for each configuration: without intervals no difference can be called real."
    parts = [f"{_reach(numbers)} {units}" for units, numbers in sorted(counts.items(), reverse=True)]
    singles = "; a value without an interval was measured once" if single else ""
    return f"Intervals are 95 %, over {' or '.join(parts)}{singles}."


def _units(metric: str, interval: Interval) -> str:
    if interval.over == "seeds":
        return "seeds"
    examples = metric.startswith(("recall", "task:", "suite:"))
    return f"held-out {'examples' if examples else 'windows'} of one seed"


def _reach(numbers: set[int]) -> str:
    return f"{min(numbers):,}" if len(numbers) == 1 else f"{min(numbers):,} to {max(numbers):,}"


def moment(text: str) -> str:
    """An ISO time as ``2026-03-02 14:05 UTC``; other text stays as it is."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return text
    zone = f" {time.tzname()}" if time.tzinfo else ""
    return f"{time:%Y-%m-%d %H:%M}{zone}"


def layers(configuration: Configuration) -> str:
    """``6 linear, 2 full (layers 3, 7)``."""
    if not configuration.n_full:
        return f"{configuration.n_linear} linear"
    if not configuration.n_linear:
        return f"{configuration.n_full} full"
    plural = "s" if configuration.n_full > 1 else ""
    indices = ", ".join(map(str, configuration.full_layers))
    return f"{configuration.n_linear} linear, {configuration.n_full} full (layer{plural} {indices})"

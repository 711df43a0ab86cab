"""Groups the configurations of a study into the lines of a chart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from plait.drawing.style import TRANSFORMER
from plait.report.labels import finite, ratio_order
from plait.study.summary import Configuration


@dataclass(frozen=True)
class Series:
    """Configurations that differ in the ratio alone, from pure to full.

    Args:
        mixer: their mixer.
        variant: what else sets them apart from other series of this mixer, such as ``placement=period_r``.
        members: in the order of ratios.
    """

    mixer: str
    variant: str
    members: list[Configuration]


def with_metric(configurations: Iterable[Configuration], *metrics: str) -> list[Configuration]:
    """The configurations that have a finite value of all these metrics."""
    return [one for one in configurations if all(finite(one.metrics.get(metric)) for metric in metrics)]


def is_transformer(configuration: Configuration) -> bool:
    """Whether every layer is softmax attention."""
    return configuration.mixer == TRANSFORMER and configuration.ratio == "full"


def group(configurations: Iterable[Configuration]) -> list[Series]:
    """Lines over the ratio. A pure model has no placement, so it begins the line of every placement."""
    configurations = list(configurations)
    hybrids = [one for one in configurations if one.n_linear and one.n_full]
    several = len({one.placement for one in hybrids}) > 1
    placements: dict[tuple[str, str], dict[str, None]] = {(one.mixer, _fields(one)): {} for one in configurations}
    for one in hybrids if several else []:
        placements[one.mixer, _fields(one)][one.placement] = None
    found = []
    for (mixer, fields), names in placements.items():
        own = [one for one in configurations if (one.mixer, _fields(one)) == (mixer, fields)]
        for placement in names or [None]:
            members = [one for one in own if placement is None or one not in hybrids or one.placement == placement]
            variant = ", ".join(part for part in (fields, f"placement={placement}" if placement else "") if part)
            found.append(Series(mixer, variant, sorted(members, key=lambda one: ratio_order(one.ratio))))
    return found


def _fields(configuration: Configuration) -> str:
    """Further grid fields as text; the placement is told apart by its own attribute."""
    fields = {key: value for key, value in configuration.fields.items() if key != "model.placement"}
    return ", ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in fields.items())

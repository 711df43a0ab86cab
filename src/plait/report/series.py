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
    return [
        configuration
        for configuration in configurations
        if all(finite(configuration.metrics.get(metric)) for metric in metrics)
    ]


def is_transformer(configuration: Configuration) -> bool:
    """Whether every layer is softmax attention."""
    return configuration.mixer == TRANSFORMER and configuration.ratio == "full"


def group(configurations: Iterable[Configuration]) -> list[Series]:
    """Lines over the ratio. A pure model has no placement, so it begins the line of every placement."""
    configurations = list(configurations)
    hybrids = [configuration for configuration in configurations if configuration.n_linear and configuration.n_full]
    several = len({configuration.placement for configuration in hybrids}) > 1
    placements: dict[tuple[str, str], dict[str, None]] = {
        (configuration.mixer, _fields(configuration)): {} for configuration in configurations
    }
    for configuration in hybrids if several else []:
        placements[configuration.mixer, _fields(configuration)][configuration.placement] = None
    groups = []
    for (mixer, fields), names in placements.items():
        own = [
            configuration
            for configuration in configurations
            if (configuration.mixer, _fields(configuration)) == (mixer, fields)
        ]
        for placement in names or [None]:
            members = [
                configuration
                for configuration in own
                if placement is None or configuration not in hybrids or configuration.placement == placement
            ]
            variant = ", ".join(part for part in (fields, f"placement={placement}" if placement else "") if part)
            groups.append(
                Series(mixer, variant, sorted(members, key=lambda configuration: ratio_order(configuration.ratio)))
            )
    return groups


def _fields(configuration: Configuration) -> str:
    """Further grid fields as text; the placement is told apart by its own attribute."""
    fields = {key: value for key, value in configuration.fields.items() if key != "model.placement"}
    return ", ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in fields.items())

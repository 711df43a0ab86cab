"""Widths of the feed-forward that give every model of a study the parameters of the full-attention one."""

from __future__ import annotations

from functools import lru_cache

from plait.errors import OptionError
from plait.models.architecture import Architecture
from plait.runs.config import DataSection, ModelSection, RunConfig

#: How far a model's parameters may be from the full-attention model's.
TOLERANCE = 0.01
#: Widths are multiples of this, as matrix units like them, unless that alone would miss a tenth of the tolerance.
STEP = 8


def matched(run: RunConfig, reference: RunConfig, where: str) -> RunConfig:
    """The run with the feed-forward width that brings its parameters nearest to the reference's.

    Every layer has one feed-forward of three matrices, so that parameters grow evenly with its width.

    Args:
        run: a resolved run.
        reference: the same with full attention in all layers.
        where: of the trial, for messages.

    Raises:
        OptionError: no width brings it within 1 %.
    """
    wanted = _parameters(reference.model.model_dump_json())

    def at(width: int) -> int:
        return _parameters(run.model.model_copy(update={"intermediate_size": width}).model_dump_json())

    bare, slope = 2 * at(STEP) - at(2 * STEP), (at(2 * STEP) - at(STEP)) // STEP
    exact = (wanted - bare) / slope
    even, nearest = max(STEP, round(exact / STEP) * STEP), max(1, round(exact))
    width = even if abs(even - exact) * slope <= 0.1 * TOLERANCE * wanted else nearest
    off = at(width) / wanted - 1
    if abs(off) > TOLERANCE:
        raise OptionError(
            f"{where}: match_parameters cannot bring this model within {TOLERANCE:.0%} of the full-attention model's "
            f"{wanted:,} parameters: with the nearest feed-forward width, {width}, it has {at(width):,} ({off:+.1%}). "
            "Take a wider base model or a smaller mixer, or leave the point out with 'exclude'."
        )
    return run.model_copy(update={"model": run.model.model_copy(update={"intermediate_size": width})})


@lru_cache(maxsize=4096)
def _parameters(model: str) -> int:
    """Of the model that a section describes; the vocabulary, which all share, is that of bytes."""
    run = RunConfig(model=ModelSection.model_validate_json(model), data=DataSection(task="mqar"))
    return Architecture.of(run).parameters()

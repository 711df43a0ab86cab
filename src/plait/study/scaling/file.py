"""The file of a scaling study: architectures, sizes, one recipe; and the grid of trials that it stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from plait.errors import OptionError
from plait.names import Name
from plait.runs.config import ModelSection
from plait.sections import Positive, Strict, read_yaml, validated
from plait.study.file import Sections, StudyFile, parse_study

#: Name of the one track of a scaling study.
TRACK = "lm"


class FitSection(Strict):
    """How the envelope is found and fitted.

    Args:
        skip_steps: first steps that are left out of the fit.
        bins_per_decade: bins of compute per factor of ten.
        resamples: draws of runs for the intervals.
        seed: of these draws.
    """

    skip_steps: Annotated[int, Field(ge=0)] = 0
    bins_per_decade: Positive = 10
    resamples: Positive = 1000
    seed: int = 0


class ScalingFile(Strict):
    """A scaling study as its file says it.

    Args:
        name: name of the study and of its folder under ``runs/``.
        description: a sentence for the report.
        base: sections of a run file that all runs share; the learning rate stays constant after its warm-up.
        mixers: linear mixers.
        ratios: what each mixer is mixed at, such as ``pure`` or ``3:1``.
        transformer: add a transformer of the same sizes.
        sizes: keys of the model section for each size, ``hidden_size`` among them and different in each.
        seeds: every size is trained once per seed.
        fit: how the envelope is found and fitted.
        workers: processes at a time; None chooses.
    """

    name: Name
    description: str = ""
    base: Sections
    mixers: list[str]
    ratios: list[str] = Field(default_factory=lambda: ["pure"])
    transformer: bool = True
    sizes: list[dict[str, Any]] = Field(min_length=2)
    seeds: list[int] = Field(default_factory=lambda: [0])
    fit: FitSection = FitSection()
    workers: Positive | None = None


def load_scaling(path: Path) -> ScalingFile:
    """Read and check the file of a scaling study.

    Raises:
        OptionError: naming the key, the value and the nearest valid key.
    """
    return parse_scaling(read_yaml(path), str(path))


def parse_scaling(values: Any, source: str) -> ScalingFile:
    """A validated scaling study.

    Args:
        values: content of the file.
        source: the file's name, for messages.

    Raises:
        OptionError: a size without a width of its own, or a learning rate that is to fall.
    """
    if not isinstance(values, dict):
        raise OptionError(f"{source}: the file of a scaling study is a mapping with 'name', 'mixers' and 'sizes'.")
    scaling = validated(ScalingFile, values, source)
    for size in scaling.sizes:
        if "hidden_size" not in size:
            raise OptionError(f"{source}: sizes: {size} has no 'hidden_size'; every size needs one.")
        validated(ModelSection, size, f"{source}, sizes")
    widths = [size["hidden_size"] for size in scaling.sizes]
    if len(set(widths)) < len(widths):
        raise OptionError(f"{source}: sizes: hidden_size = {widths}: give each width once; it names the size.")
    fraction = scaling.base.training.get("final_fraction", 1.0)
    if fraction != 1.0:
        raise OptionError(
            f"{source}: base.training.final_fraction = {fraction}: a scaling study reads the loss along the way, which "
            "compares only at a constant rate; drop the key."
        )
    grid_study(scaling, source)
    return scaling


def grid_study(scaling: ScalingFile, source: str) -> StudyFile:
    """The study whose trials are the runs, for the runner.

    Raises:
        OptionError: a mixer or ratio that does not exist.
    """
    base = scaling.base.model_dump()
    base["training"]["final_fraction"] = 1.0
    content = {
        "name": scaling.name,
        "description": scaling.description,
        "base": base,
        "tracks": {TRACK: {"kind": "lm"}},
        "grid": {
            "mixers": scaling.mixers,
            "ratios": scaling.ratios,
            "model.hidden_size": [size["hidden_size"] for size in scaling.sizes],
        },
        "transformer": scaling.transformer,
        "seeds": scaling.seeds,
        "overrides": [override for size in scaling.sizes for override in _override(size)],
        "workers": scaling.workers,
    }
    return parse_study(content, source)


def _override(size: dict[str, Any]) -> list[dict[str, Any]]:
    others = _dotted({key: value for key, value in size.items() if key != "hidden_size"}, "model")
    return [{"when": {"model.hidden_size": size["hidden_size"]}, "set": others}] if others else []


def _dotted(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Nested mappings as dotted keys, so that a size sets an option of a mixer and leaves its others."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}.{key}"
        flat |= _dotted(value, name) if isinstance(value, dict) else {name: value}
    return flat

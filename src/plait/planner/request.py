"""From a question (size, context, batch, memory) to the layer plans that answer it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plait.planner.candidates import Grid, Load, candidates
from plait.planner.devices import Device
from plait.planner.front import Choice, choose
from plait.planner.recall import of_study, published
from plait.planner.shapes import Shape, shape_for


@dataclass(frozen=True)
class Plan:
    """The question with its answer.

    Args:
        shape: sizes of the models.
        load: what is decoded.
        device: on what.
        recall: where recall is from, for people.
        choice: the layer plans.
    """

    shape: Shape
    load: Load
    device: Device
    recall: str
    choice: Choice

    def record(self) -> dict[str, Any]:
        """For JSON."""
        load = {**asdict(self.load), "dtype": str(self.load.dtype).removeprefix("torch.")}
        about = {"shape": asdict(self.shape), "load": load, "device": asdict(self.device), "recall": self.recall}
        return {**about, **self.choice.record()}

    def sentences(self, everything: bool = False) -> list[str]:
        """What was left out and what the figures rest on, for people.

        Args:
            everything: whether plans off the front are shown.
        """
        choice, memory = self.choice, self.device.memory
        said = []
        if choice.too_large:
            least, most = choice.too_large[0].memory, choice.too_large[-1].memory
            said.append(
                f"{len(choice.too_large)} of {len(choice.too_large) + len(choice.fits)} plans do not fit in "
                f"{_gib(memory)}: they need {_gib(least)} to {_gib(most)}."
            )
        for reason, count in choice.refused.items():
            candidate = "1 combination cannot be built" if count == 1 else f"{count} combinations cannot be built"
            said.append(f"{candidate}: {reason}")
        hidden = len(choice.fits) - len(choice.front)
        if hidden and not everything:
            said.append(f"{hidden} plans that fit are not shown because another plan beats them; --all shows them.")
        unknown = sum(candidate.recall is None for candidate in choice.fits)
        if unknown:
            said.append(
                f"The recall of {unknown} plans that fit is unknown; they are compared only with each other, by memory "
                "and speed."
            )
        said.append(f"Recall: {self.recall}.")
        said.append(
            "Tokens/s are the most that the device allows for the batch: bandwidth over bytes moved, or peak over "
            "FLOPs where that is less."
        )
        said.append(
            "Memory = weights + grows + bounded + constant + working: 'grows' are keys and values of full layers, "
            "'bounded' those within windows, 'constant' recurrent states and convolution inputs, and 'working' is the "
            "largest growing cache of one layer once more, while a token is appended."
        )
        return said


def make_plan(
    size: int | tuple[int, int],
    load: Load,
    device: Device,
    *,
    study: Path | None = None,
    vocab_size: int = 32_000,
    grid: Grid | None = None,
) -> Plan:
    """The layer plans of a size that fit on a device.

    Args:
        size: parameters, see :func:`plait.planner.shapes.shape_for`; or layers and width.
        load: what is decoded.
        device: on what; its memory is the bound.
        study: ``report.json`` of a study (or its folder) to take recall from; None takes the paper's figures.
        vocab_size: rows of the embedding.
        grid: which plans.

    Raises:
        OptionError: no such shape, or a load that is none.
        DataError: the study cannot be read.
    """
    shape = shape_for(size, vocab_size) if isinstance(size, int) else Shape(*size, vocab_size, "as asked for")
    recall = published(shape.layers, shape.hidden_size) if study is None else of_study(study)
    considered = candidates(shape, load, device, recall, grid)
    return Plan(shape, load, device, recall.source, choose(considered.found, device.memory, considered.refused))


def _gib(size: int) -> str:
    return f"{size / 2**30:.4g} GiB"

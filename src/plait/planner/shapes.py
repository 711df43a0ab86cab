"""Depth, width and heads of a model from the number of parameters that is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plait import catalog
from plait.catalog import PaperSizes
from plait.errors import OptionError
from plait.nn import swiglu_width

#: Labels of 2507.06457 and the widths that stand behind them, all with 24 layers; the transformers of these shapes have
#: 373.9M and 1.364B parameters.
PAPER_WIDTHS = {340_000_000: 1024, 1_300_000_000: 2048}
_NAMES = {340_000_000: "340M", 1_300_000_000: "1.3B"}
PAPER_LAYERS = 24
#: Rows of the embedding and of the untied head.
VOCABULARY = 32_000
#: How far the transformer of a shape may be from what is asked for.
TOLERANCE = 0.03
#: Widths are multiples of this, so that every mixer's heads of 64, 128 or 256 channels fit.
WIDTH_STEP = 256
_DEPTHS = range(4, 97)


@dataclass(frozen=True)
class Shape:
    """Sizes of a model of the family.

    Args:
        layers: depth.
        hidden_size: width d.
        vocab_size: rows of the embedding.
        rule: how the sizes were found, for people.
    """

    layers: int
    hidden_size: int
    vocab_size: int
    rule: str

    def options(self, mixer: str) -> dict[str, Any]:
        """A mixer's options as in 2507.06457, section 3, where that paper has it; else its defaults."""
        return _paper_sizes(mixer).at(self.hidden_size)

    def hidden_ratio(self, mixer: str) -> int:
        """Feed-forward width over d before the 2/3 of SwiGLU, in a model of this mixer."""
        return _paper_sizes(mixer).hidden_ratio

    @property
    def is_papers(self) -> bool:
        """Whether 2507.06457 trained models of this shape."""
        return self.layers == PAPER_LAYERS and self.hidden_size in PAPER_WIDTHS.values()


def _paper_sizes(mixer: str) -> PaperSizes:
    return catalog.get(mixer).paper_sizes or PaperSizes()


def transformer_parameters(layers: int, hidden_size: int, vocab_size: int = VOCABULARY) -> int:
    """Parameters of the family's transformer: ``4 d^2 + 3 d f + 2 d`` a layer, embedding, head and last norm."""
    d = hidden_size
    return layers * (4 * d * d + 3 * d * swiglu_width(d) + 2 * d) + 2 * vocab_size * d + d


def shape_for(parameters: int, vocab_size: int = VOCABULARY) -> Shape:
    """The shape whose transformer has about so many parameters.

    "340M" and "1.3B" are the shapes that 2507.06457 gives these names. Any other number gets the width, a multiple of
    256, and the depth that come within 3 % of it and whose depth is nearest to that paper's 24.

    Args:
        parameters: of the whole model, embedding and head included.
        vocab_size: rows of the embedding.

    Raises:
        OptionError: no shape of the family is within 3 %.
    """
    if parameters in PAPER_WIDTHS and vocab_size == VOCABULARY:
        width = PAPER_WIDTHS[parameters]
        return Shape(PAPER_LAYERS, width, vocab_size, f"the {_NAMES[parameters]} shape of 2507.06457")
    shapes = []
    for width in range(WIDTH_STEP, 32 * 1024, WIDTH_STEP):
        for layers in _DEPTHS:
            error = abs(transformer_parameters(layers, width, vocab_size) / parameters - 1)
            if error <= TOLERANCE:
                shapes.append((abs(layers - PAPER_LAYERS), error, layers, width))
    if not shapes:
        least = transformer_parameters(_DEPTHS[0], WIDTH_STEP, vocab_size)
        raise OptionError(
            f"No model of the family (width a multiple of {WIDTH_STEP}, {_DEPTHS[0]} to {_DEPTHS[-1]} layers, "
            f"vocabulary {vocab_size:,}) has {parameters:,} parameters within {TOLERANCE:.0%}; the smallest has "
            f"{least:,}. Ask for another number, or set --layers and --hidden-size."
        )
    _, error, layers, width = min(shapes)
    return Shape(layers, width, vocab_size, f"the family's shape nearest to 24 layers within {TOLERANCE:.0%}")

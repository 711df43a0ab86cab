"""The sizes at which operations are timed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from plait.errors import OptionError


@dataclass(frozen=True)
class Shape:
    """Sizes of one timing: batch B, tokens T, heads H, key and value width D of a head."""

    batch: int
    tokens: int
    heads: int
    width: int

    def __str__(self) -> str:
        return f"B{self.batch}-T{self.tokens}-H{self.heads}-D{self.width}"

    @classmethod
    def parse(cls, text: str) -> Shape:
        """The shape that prints as ``text``, such as ``B1-T4096-H8-D64``.

        Raises:
            OptionError: the text has another form, or a size is zero.
        """
        match = re.fullmatch(r"B([1-9]\d*)-T([1-9]\d*)-H([1-9]\d*)-D([1-9]\d*)", text)
        if match is None:
            raise OptionError(
                f"shape {text!r} is not of the form B1-T4096-H8-D64: batch, tokens, heads and width of a head, "
                "each at least 1."
            )
        batch, tokens, heads, width = map(int, match.groups())
        return cls(batch, tokens, heads, width)


@dataclass(frozen=True)
class LayerShape:
    """Sizes of a whole layer's input: batch B, tokens T, width D of the model."""

    batch: int
    tokens: int
    width: int

    def __str__(self) -> str:
        return f"B{self.batch}-T{self.tokens}-D{self.width}"

    @classmethod
    def parse(cls, text: str) -> LayerShape:
        """The shape that prints as ``text``, such as ``B1-T4096-D1024``.

        Raises:
            OptionError: the text has another form, or a size is zero.
        """
        match = re.fullmatch(r"B([1-9]\d*)-T([1-9]\d*)-D([1-9]\d*)", text)
        if match is None:
            raise OptionError(
                f"shape {text!r} is not of the form B1-T4096-D1024: batch, tokens and width of the model, each at "
                "least 1."
            )
        batch, tokens, width = map(int, match.groups())
        return cls(batch, tokens, width)


#: ``small`` takes about a minute; ``full`` goes through every batch, length, head count and width in a few steps.
SIZES: dict[str, list[Shape]] = {
    "small": [Shape(1, 512, 4, 64), Shape(1, 2048, 4, 64)],
    "full": [
        Shape(4, 512, 4, 64),
        Shape(1, 1024, 8, 64),
        Shape(1, 2048, 8, 64),
        Shape(4, 2048, 8, 128),
        Shape(1, 4096, 8, 64),
        Shape(1, 4096, 8, 128),
        Shape(1, 4096, 16, 64),
        Shape(1, 16384, 8, 128),
        Shape(1, 65536, 4, 64),
    ],
}


def chosen_shapes(sizes: str, named: Sequence[str]) -> list[Shape]:
    """The shapes named one by one, or else those of ``SIZES[sizes]``.

    Raises:
        OptionError: as :meth:`Shape.parse`.
    """
    return [Shape.parse(text) for text in named] or SIZES[sizes]

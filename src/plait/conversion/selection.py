"""Which layers stay softmax attention: by place, by name, by a table of heads, or by what their loss costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.errors import DataError, OptionError, nearest
from plait.files import read_json
from plait.models.plan import full_layers

WAYS = ("every", "importance", "heads")

#: Largest importance of a layer (HALO, 2601.22156, code).
MOST = 50.0


@dataclass(frozen=True)
class Selection:
    """How layers are chosen.

    Args:
        way: ``every`` (by ratio and place), ``importance`` (measured by leaving layers out) or ``heads`` (by a table
            of retrieval heads).
        ratio: linear layers per full one, as in :func:`plait.layer_plan`; gives their number for the other ways.
        layers: the layers that stay, instead of all that.
        scores: the table for ``heads``: a JSON file, or the array itself, one row a layer and one number a head.

    Raises:
        OptionError: arguments that do not fit together.
    """

    way: str
    ratio: str = "3:1"
    layers: Sequence[int] | None = None
    scores: str | Path | Sequence[Sequence[float]] | None = None

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise OptionError(f"There is no selection {self.way!r}.{nearest(self.way, WAYS)}")
        if self.way == "heads" and self.scores is None and self.layers is None:
            raise OptionError(
                "The selection 'heads' needs a table: scores=FILE.json, one row a layer, one number a head."
            )
        if self.way != "heads" and self.scores is not None:
            raise OptionError(f"scores goes with the selection 'heads', not with {self.way!r}.")

    @property
    def measured(self) -> bool:
        """Whether layers are chosen after their twins were aligned."""
        return self.way == "importance" and self.layers is None and self.ratio not in ("pure", "full")

    def choose(self, layers: int, heads: int) -> list[int]:
        """The layers that stay, for every way that needs no measurement.

        Args:
            layers, heads: of the teacher.
        """
        if self.layers is not None:
            return full_layers(list(self.layers), layers)
        by_place = full_layers(self.ratio, layers)
        if self.way != "heads":
            return by_place
        assert self.scores is not None
        table = head_table(self.scores, layers, heads)
        return most_important([max(row) for row in table], len(by_place))

    def described(self) -> dict[str, Any]:
        """Ready for JSON."""
        scores = str(self.scores) if isinstance(self.scores, str | Path) else self.scores
        chosen = None if self.layers is None else list(self.layers)
        return {"way": self.way, "ratio": self.ratio, "layers": chosen, "scores": scores}


def importance(recall: Sequence[float], language: Sequence[float]) -> list[float]:
    """What each layer is worth as attention: recall lost over language lost (HALO, 2601.22156, stage 2).

    ``min(50, (max_j R_j - R_l) / (max_j C_j - C_l + 1e-10))``: large where replacing the layer costs recall and hardly
    anything else. The references are the maxima over the sweep, not the original model's scores.

    Args:
        recall: R of the models with one layer replaced, higher is better.
        language: C of the same models, higher is better.
    """
    best_recall, best_language = max(recall), max(language)
    pairs = zip(recall, language, strict=True)
    return [min(MOST, (best_recall - r) / (best_language - c + 1e-10)) for r, c in pairs]


def most_important(scores: Sequence[float], count: int) -> list[int]:
    """The ``count`` layers of the largest scores, in order of depth; of equal ones the earlier."""
    ranked = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    return sorted(ranked[:count])


def head_table(source: str | Path | Sequence[Sequence[float]], layers: int, heads: int) -> list[list[float]]:
    """A table of retrieval heads, checked against the model.

    Args:
        source: a JSON file with the array, alone or under the key ``scores``; or the array.
        layers, heads: what the table must have.

    Raises:
        DataError: no such file, no such table, or one of another model.
    """
    name = "scores"
    values: Any = source
    if isinstance(source, str | Path):
        name = str(source)
        values = read_json(Path(source))
        if isinstance(values, Mapping):
            values = values.get("scores", [])
    try:
        table = [[float(value) for value in row] for row in values]
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{name}: a table is a list of rows of numbers, one row a layer, one number a head.") from None
    shapes = {len(row) for row in table}
    if len(table) != layers or shapes != {heads}:
        found = f"{len(table)} rows of {'/'.join(map(str, sorted(shapes))) or 'no'} numbers"
        raise DataError(f"{name} has {found}, but the model has {layers} layers of {heads} heads.")
    return table

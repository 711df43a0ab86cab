"""One number per layer and kv head: how much a head needs full attention (the result of a calibration)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from plait.errors import DataError, OptionError, PlaitError
from plait.files.reading import read_text, reason
from plait.runtime.artefact import Artefact
from plait.runtime.call import LayerInfo, ModelInfo

#: Kind of the artefact.
KIND = "head_table"


@dataclass(frozen=True)
class HeadTable:
    """Values by layer and kv head.

    Args:
        values: one row per layer of the model, one number per kv head.
        fingerprint: of the model it was made for (:attr:`~plait.policies.ModelInfo.fingerprint`), or None if unknown.
        source: what messages call it.
        weights: fingerprint of that model's weights, or None if they do not matter.
    """

    values: tuple[tuple[float, ...], ...]
    fingerprint: str | None = None
    source: str = "the given table"
    weights: str | None = None

    @classmethod
    def load(cls, path: str | Path) -> HeadTable:
        """A table from a ``.json`` file of :meth:`save`, or from tab-separated rows, as DuoAttention publishes them.

        Raises:
            DataError: the file cannot be read as a table.
        """
        path = Path(path)
        try:
            if path.suffix == ".json":
                artefact = Artefact.load(path, KIND)
                rows = tuple(tuple(map(float, row)) for row in artefact.values["heads"])
                return cls(rows, artefact.fingerprint, str(path), artefact.weights)
            rows = tuple(tuple(map(float, line.split())) for line in read_text(path).splitlines() if line.strip())
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            if isinstance(error, PlaitError):
                raise
            raise DataError(f"{path} is no head table, rows of numbers, one row a layer: {reason(error)}.") from None
        return cls(rows, None, str(path))

    def artefact(self) -> Artefact:
        """The table as what a calibration leaves."""
        rows = [list(row) for row in self.values]
        return Artefact(KIND, self.fingerprint, {"heads": rows}, weights=self.weights, source=self.source)

    def save(self, path: str | Path) -> None:
        """Write a ``.json`` file."""
        self.artefact().save(path)

    def check(self, model: ModelInfo) -> None:
        """Raise :class:`~plait.errors.OptionError` unless the table is for such a model."""
        expected = [layer.kv_heads for layer in model.layers]
        found = [len(row) for row in self.values]
        if found != expected:
            raise OptionError(
                f"{self.source} has {len(found)} rows of {sorted(set(found))} heads, but {model.name} has "
                f"{len(expected)} layers of {sorted(set(expected))} kv heads: use the table of this model."
            )
        self.artefact().check(model)

    def largest(self, share: float, layers: list[LayerInfo]) -> dict[int, list[bool]]:
        """The heads of the largest values, over all ``layers`` together, by layer index.

        No head for a share of 0. Otherwise, with n heads, the ``ceil((1 - share) (n - 1))`` smallest are left out:
        those below the ``1 - share`` quantile, where ties are broken by layer and head.
        """
        rows = {layer.index: self.values[position] for position, layer in enumerate(layers)}
        ordered = sorted((min(max(v, 0.0), 1.0), i, h) for i, row in rows.items() for h, v in enumerate(row))
        if share <= 0:  # the published code treats it apart: the largest value itself is no longer full
            return {i: [False] * len(row) for i, row in rows.items()}
        dropped = math.ceil(round((1 - share) * (len(ordered) - 1), 6))  # 0.7 * 10 is not above 7
        out = {(i, h) for _, i, h in ordered[:dropped]}
        return {i: [(i, h) not in out for h in range(len(row))] for i, row in rows.items()}

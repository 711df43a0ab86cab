"""What a probe is: a measurement inside a model, as a context manager that leaves a typed table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from plait import catalog
from plait.errors import OptionError
from plait.options import Options

if TYPE_CHECKING:
    import pandas


class Probe(ABC):
    """A measurement inside a decoder of transformers or of plait.

    Inside ``with probe:`` the model runs as always, and what the probe looks at is collected; afterwards
    :meth:`table` and :meth:`svg` show it. The same probe may be entered again and collects on.

    Args:
        model: the model, in evaluation mode.
        options: the probe's own options.
    """

    #: A frozen dataclass of options.
    Options: ClassVar[type[Options]]
    #: Columns of the table with their pandas types.
    columns: ClassVar[Mapping[str, str]]
    #: The column by which rows are ranked, the highest first.
    ranked: ClassVar[str]
    #: The column of which only the highest value is ranked, such as the tokens read; None: all rows are.
    latest: ClassVar[str | None] = None

    def __init__(self, model: nn.Module, options: Any = None) -> None:
        self.model = model
        self.options: Any = type(self).Options() if options is None else options

    @abstractmethod
    def __enter__(self) -> Self:
        """Begin to watch.

        Raises:
            OptionError: the model has nothing that the probe can watch; the message says why.
        """

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop watching; the model is as before."""

    @abstractmethod
    def records(self) -> Sequence[Mapping[str, Any]]:
        """Rows of the table."""

    @abstractmethod
    def sentence(self) -> str:
        """What was found, in one line of plain English."""

    @abstractmethod
    def svg(self) -> str:
        """What was measured, drawn as an SVG document."""

    def run(self, ids: Tensor) -> None:
        """Watch one pass over ``ids`` ``(B, T)``: what ``plait probe`` does with a text.

        Raises:
            OptionError: as on entering.
        """
        with self, torch.no_grad():
            self.model(input_ids=ids, use_cache=False)

    def table(self) -> pandas.DataFrame:
        """What was measured so far, one row a measurement, with the types of :attr:`columns`.

        Raises:
            OptionError: nothing was measured yet.
        """
        import pandas

        records = self.records()
        if not records:
            raise OptionError(f"{type(self).__name__} has seen nothing yet: run the model inside its with block first.")
        return pandas.DataFrame(records, columns=list(self.columns)).astype(dict(self.columns))

    def top(self) -> pandas.DataFrame:
        """The rows of :meth:`table` by :attr:`ranked`, the highest first."""
        table = self.table()
        if self.latest is not None:
            table = table[table[self.latest] == table[self.latest].max()]
        return table.sort_values(self.ranked, ascending=False, kind="stable")


def probe(model: nn.Module, name: str, **options: Any) -> Probe:
    """A probe of the catalogue for a model.

    Args:
        model: a decoder of transformers or of plait.
        name: such as ``attention_sinks``.
        options: of the probe.

    Raises:
        CatalogError: there is no such probe.
        OptionError: an option that does not exist or is out of range.
    """
    kind = catalog.get(name, "probe").load()
    return kind(model, kind.Options.parse(name, options))

"""What exists: one line per method. Nothing is imported until a method is used.

Another package adds its own methods through the entry-point group ``plait.methods``; each entry point
names a :class:`Method` or a list of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from plait.errors import CatalogError, nearest


@dataclass(frozen=True)
class Method:
    """One method of the catalogue.

    Args:
        name: the name users write in configurations.
        kind: ``mixer``, ``task`` (of token ids), ``benchmark`` (of prompts); later ``policy``, ``recipe`` and others.
        target: ``module:Class``, imported on first use.
        title: the method's name in the literature.
        paper: arXiv number.
        state: ``constant`` if the decoding state does not grow with the context, else ``grows``.
        notes: what the method cannot do, for the common tests and for readers.
    """

    name: str
    kind: str
    target: str
    title: str
    paper: str
    state: str = ""
    notes: str = ""

    def load(self) -> Any:
        """Import and return the class."""
        module, _, attribute = self.target.partition(":")
        return getattr(import_module(module), attribute)


_METHODS = [
    # name, kind, target, title, paper, state
    Method("attention", "mixer", "plait.mixers.attention:Attention", "Softmax attention", "1706.03762", "grows"),
    Method("retnet", "mixer", "plait.mixers.retnet:RetNet", "RetNet", "2307.08621", "constant"),
    Method("hgrn", "mixer", "plait.mixers.hgrn:HGRN", "HGRN", "2311.04823", "constant"),
    Method("hgrn2", "mixer", "plait.mixers.hgrn2:HGRN2", "HGRN2", "2404.07904", "constant"),
    Method("gla", "mixer", "plait.mixers.gla:GLA", "Gated Linear Attention", "2312.06635", "constant"),
    Method("deltanet", "mixer", "plait.mixers.deltanet:DeltaNet", "DeltaNet", "2406.06484", "constant"),
    Method(
        "gated_deltanet",
        "mixer",
        "plait.mixers.gated_deltanet:GatedDeltaNet",
        "Gated DeltaNet",
        "2412.06464",
        "constant",
    ),
    Method("mqar", "task", "plait.data.tasks.mqar:MQAR", "Multi-query associative recall", "2312.04927"),
]


@cache
def _all() -> dict[tuple[str, str], Method]:
    methods = list(_METHODS)
    for entry in entry_points(group="plait.methods"):
        found = entry.load()
        methods.extend(found if isinstance(found, list) else [found])
    table: dict[tuple[str, str], Method] = {}
    for method in methods:
        key = (method.kind, method.name)
        if key in table:
            raise CatalogError(
                f"Two methods of kind {method.kind!r} are named {method.name!r} "
                f"({table[key].target} and {method.target}); rename one in its entry point."
            )
        table[key] = method
    return table


def methods(kind: str | None = None) -> list[Method]:
    """All methods, or those of one kind, in catalogue order."""
    return [method for method in _all().values() if kind is None or method.kind == kind]


def names(kind: str) -> list[str]:
    """Names of all methods of one kind, in catalogue order."""
    return [method.name for method in methods(kind)]


def get(name: str, kind: str = "mixer") -> Method:
    """The method of this name; :class:`~plait.errors.CatalogError` with the nearest name otherwise."""
    try:
        return _all()[kind, name]
    except KeyError:
        raise CatalogError(f"There is no {kind} named {name!r}.{nearest(name, names(kind))}") from None

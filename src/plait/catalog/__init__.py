"""What exists: one table a kind, one row a method. Nothing is imported until a method is used.

Another package adds its own methods through the entry-point group ``plait.methods``; each entry point
names a :class:`Method` or a list of them.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any

from plait.catalog.benchmarks import BENCHMARKS
from plait.catalog.claims import CLAIMS
from plait.catalog.method import Method, PaperSizes, Peer
from plait.catalog.mixers import MIXERS
from plait.catalog.policies import POLICIES
from plait.catalog.probes import PROBES
from plait.catalog.recipes import RECIPES
from plait.catalog.tasks import TASKS
from plait.errors import CatalogError, nearest

__all__ = ["Method", "PaperSizes", "Peer", "get", "method_of", "methods", "name_of", "names", "suites"]

#: Suites of texts and of lm-eval's task sets, and the one of everything.
SUITES_OF_TEXT, ALL_SUITES = ("lm", "harness"), "all"


@cache
def _all() -> dict[tuple[str, str], Method]:
    methods = [*MIXERS, *RECIPES, *POLICIES, *TASKS, *BENCHMARKS, *PROBES, *CLAIMS]
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


def methods(kind: str | None = None, **tags: Any) -> list[Method]:
    """All methods, or those of one kind, in catalogue order.

    Args:
        kind: see :class:`Method`.
        tags: only methods with these values of their tags; ``...`` for any value, as in ``peer=...``.
    """
    return [method for method in _all().values() if (kind is None or method.kind == kind) and method.has(**tags)]


def names(kind: str, **tags: Any) -> list[str]:
    """Names of the methods of one kind, in catalogue order; ``tags`` as in :func:`methods`."""
    return [method.name for method in methods(kind, **tags)]


def get(name: str, kind: str = "mixer") -> Method:
    """The method of this name; :class:`~plait.errors.CatalogError` with the nearest name otherwise."""
    try:
        return _all()[kind, name]
    except KeyError:
        raise CatalogError(f"There is no {kind} named {name!r}.{nearest(name, names(kind))}") from None


def method_of(target: type, kind: str) -> Method | None:
    """The row of a class, or None where it is not listed."""
    place = f"{target.__module__}:{target.__qualname__}"
    return next((method for method in methods(kind) if method.target == place), None)


def name_of(target: type, kind: str) -> str:
    """The catalogue's name of a class; the class's own name where it is not listed."""
    method = method_of(target, kind)
    return target.__name__ if method is None else method.name


def suites() -> list[str]:
    """Names of all suites: those that tasks and benchmarks belong to, and three that are no list of methods."""
    named = dict.fromkeys(suite for method in methods() for suite in method.suites)
    return [*named, *SUITES_OF_TEXT, ALL_SUITES]

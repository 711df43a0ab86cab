"""Conversion of pretrained transformers into hybrids, in resumable stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait.conversion.recipe import Recipe
    from plait.conversion.run import Conversion, convert
    from plait.conversion.selection import Selection, head_table, importance, most_important

__all__ = ["Conversion", "Recipe", "Selection", "convert", "head_table", "importance", "most_important"]

_EXPORTS = {
    "Conversion": "plait.conversion.run",
    "convert": "plait.conversion.run",
    "Recipe": "plait.conversion.recipe",
    "Selection": "plait.conversion.selection",
    "head_table": "plait.conversion.selection",
    "importance": "plait.conversion.selection",
    "most_important": "plait.conversion.selection",
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        from importlib import import_module

        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'plait.conversion' has no attribute {name!r}")

"""Hybrid attention: build, train, measure and compare models that mix softmax attention with linear mixers.

Importing this package loads neither torch nor transformers; each name below is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait.conversion.run import convert
    from plait.models.loading import load
    from plait.models.plan import layer_plan
    from plait.policies import policy
    from plait.probes import probe

    __version__: str

__all__ = ["__version__", "convert", "layer_plan", "load", "policy", "probe"]

_EXPORTS = {
    "convert": "plait.conversion.run",
    "load": "plait.models.loading",
    "layer_plan": "plait.models.plan",
    "policy": "plait.policies",
    "probe": "plait.probes",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("plait")
    if name in _EXPORTS:
        from importlib import import_module

        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'plait' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

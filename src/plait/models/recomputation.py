"""What gradient checkpointing with ``use_reentrant=True`` cannot do: its first pass makes no graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from plait.errors import OptionError

_FIX = "pass gradient_checkpointing_kwargs={'use_reentrant': False}."


def reentrant(block: nn.Module) -> bool:
    """Whether a block is checkpointed in the way that computes its first pass without a graph."""
    function: Any = getattr(block, "_gradient_checkpointing_func", None)
    return bool(block.gradient_checkpointing and getattr(function, "keywords", {}).get("use_reentrant"))


def refuse_lost_gradients(published: Mapping[tuple[int, str], Any], layer: int) -> None:
    """A tensor that layers hand to each other comes from a reentrant block, or goes into one, without its graph.

    Args:
        published: what layers had handed on by the end of a reentrant block, by layer and name.
        layer: that block's index.

    Raises:
        OptionError: an entry has a graph.
    """
    for (source, name), value in published.items():
        if any(isinstance(leaf, Tensor) and leaf.grad_fn is not None for leaf in tree_leaves(value)):
            raise OptionError(
                f"Gradient checkpointing with use_reentrant=True loses the gradient of {name!r}, which layer {source} "
                f"hands to later ones, at layer {layer}; {_FIX}"
            )


def refuse_lost_losses(blocks: Iterable[nn.Module]) -> None:
    """Losses and attention weights of mixers have no gradient where the first pass of a block has none.

    Raises:
        OptionError: a block is checkpointed reentrantly.
    """
    if any(reentrant(block) for block in blocks):
        raise OptionError(
            "Gradient checkpointing with use_reentrant=True loses the gradients of losses and attention weights that "
            "mixers add; " + _FIX
        )


__all__ = ["reentrant", "refuse_lost_gradients", "refuse_lost_losses"]

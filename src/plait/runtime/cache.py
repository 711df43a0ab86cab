"""The cache that a policy puts under a Hugging Face model: each layer holds the policy's own memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor

from plait.errors import CacheError
from plait.mixers.state import LayerState
from plait.models.cache import PlaitCache, PlaitCacheLayer


class Owner(Protocol):
    """What filled a cache."""

    @property
    def applied(self) -> bool:
        """Whether it is still in force."""


class PolicyCacheLayer(PlaitCacheLayer):
    """One layer's memory under a policy.

    ``update`` counts the new tokens and hands them on unchanged; the attention function stores them.

    Args:
        state: the policy's memory.
        owner: what applied the policy.
    """

    def __init__(self, state: LayerState, owner: Owner) -> None:
        super().__init__(state)
        self.owner = owner

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]
        """Whether the newest tokens can be taken back."""
        return self.state.can_crop

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Count the new keys and values ``(B, G, T, D)`` and return them.

        Raises:
            CacheError: the policy is no longer applied.
        """
        if not self.owner.applied:
            raise CacheError(
                "This cache was filled under a policy that is not applied here: go on inside its `with` block and in "
                "its thread, or start with a new cache."
            )
        self.slots += key_states.shape[-2]
        return key_states, value_states


class PolicyCache(PlaitCache):
    """A :class:`~plait.models.PlaitCache` whose layers belong to a policy: beams, snapshots, forks and crops work.

    Args:
        states: memory of the layers, by depth.
        owner: what applied the policy.
    """

    def __init__(self, states: Iterable[LayerState], owner: Owner) -> None:
        super().__init__(None, states)  # type: ignore[arg-type]
        self.layers = [PolicyCacheLayer(layer.state, owner) for layer in self.layers]
        self.owner = owner

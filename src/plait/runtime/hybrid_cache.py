"""The cache under a hybrid of transformers: softmax layers hold the policy's memory, the others their own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, cache_utils
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin, LinearAttentionLayer

from plait.errors import CacheError
from plait.mixers.state import LayerState
from plait.runtime.cache import Owner, PolicyCache, PolicyCacheLayer

#: What newer versions of transformers put in place of a layer without memory.
_NO_MEMORY: type | tuple[()] = getattr(cache_utils, "DummyLayer", ())


def recurrent_layers(config: Any) -> dict[int, str]:
    """Layers of a decoder that do not attend: ``recurrent`` or convolutional ones, and those without memory (``none``).

    Args:
        config: of the decoder.
    """
    kinds = {}
    for index, layer in enumerate(DynamicCache(config=config).layers):
        if isinstance(layer, _NO_MEMORY):
            kinds[index] = "none"
        elif not isinstance(layer, CacheLayerMixin):
            kinds[index] = "recurrent"
    return kinds


class RecurrentPolicyLayer(LinearAttentionLayer, PolicyCacheLayer):
    """A layer with both: softmax heads under a policy beside recurrent ones (Falcon-H1).

    Args:
        state: the policy's memory.
        owner: what applied the policy.
        number_of_states: of the recurrent part.
    """

    is_compileable = False

    def __init__(self, state: LayerState, owner: Owner, number_of_states: int) -> None:
        PolicyCacheLayer.__init__(self, state, owner)
        LinearAttentionLayer.__init__(self, number_of_states)

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]
        return False

    def reset(self) -> None:
        LinearAttentionLayer.reset(self)
        PolicyCacheLayer.reset(self)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        LinearAttentionLayer.reorder_cache(self, beam_idx)  # type: ignore[arg-type]
        PolicyCacheLayer.reorder_cache(self, beam_idx)


@dataclass(frozen=True)
class HybridSnapshot:
    """What a cache held at one moment; independent of the cache and good for any number of restores."""

    layers: tuple[Any, ...]
    padding: Tensor | None


class HybridPolicyCache(PolicyCache):
    """A :class:`~plait.runtime.cache.PolicyCache` in which only some layers belong to a policy.

    Beams, repeated and selected rows, snapshots and forks work; newest tokens cannot be taken back, since they are
    folded into the recurrent states.

    Args:
        config: of the decoder.
        states: the policy's memory by index of a softmax layer.
        owner: what applied the policy.
    """

    layers: list[Any]

    def __init__(self, config: Any, states: Mapping[int, LayerState], owner: Owner) -> None:
        super().__init__(states.values(), owner)
        served = dict(zip(states, self.layers, strict=True))
        layers: list[Any] = DynamicCache(config=config).layers
        for index, layer in served.items():
            native = layers[index]
            if isinstance(native, LinearAttentionLayer):
                layer = RecurrentPolicyLayer(layer.state, owner, native.number_of_states)  # type: ignore[assignment]
            layers[index] = layer
        self.layers = layers

    @property
    def served(self) -> list[PolicyCacheLayer]:
        """The softmax layers."""
        return [layer for layer in self.layers if isinstance(layer, PolicyCacheLayer)]

    @property
    def slots(self) -> int:
        return self.served[0].slots

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        return DynamicCache.has_previous_state(self, layer_idx, state_idx)  # type: ignore[arg-type]

    def bytes(self) -> int:
        """Bytes held by all layers, the states of the recurrent ones too."""
        states = [layer for layer in self.layers if isinstance(layer, LinearAttentionCacheLayerMixin)]
        tensors = [x for layer in states for kind in (layer.conv_states, layer.recurrent_states) for x in kind.values()]
        return sum(layer.state.bytes() for layer in self.served) + sum(x.nbytes for x in tensors if x is not None)

    def snapshot(self) -> HybridSnapshot:  # type: ignore[override]
        return HybridSnapshot(tuple(map(_copied, self.layers)), None if self.padding is None else self.padding.clone())

    def restore(self, snapshot: HybridSnapshot) -> None:  # type: ignore[override]
        if not isinstance(snapshot, HybridSnapshot) or len(snapshot.layers) != len(self.layers):
            raise CacheError("The snapshot is of another model: restore it into a cache of its own model.")
        self.layers = list(map(_copied, snapshot.layers))
        self.padding = None if snapshot.padding is None else snapshot.padding.clone()

    def fork(self, n: int) -> HybridPolicyCache:
        if n < 1:
            raise CacheError(f"fork({n}) makes no sense: a cache has at least one copy of each row.")
        twin = copy.copy(self)
        twin.restore(self.snapshot())
        twin.batch_repeat_interleave(n)
        return twin

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise CacheError(
                "A hybrid cannot forget its newest tokens: they are folded into the states of its recurrent layers. "
                "Take cache.snapshot() before these tokens and cache.restore() it."
            )

    def reset(self) -> None:
        for layer in self.layers:
            layer.reset()
        self.padding = None

    def batch_repeat_interleave(self, repeats: int) -> None:
        segments = [segment for layer in self.served for segment in layer.state.segments.values()]
        rows = next((x.shape[0] for segment in segments for _, x in segment.tensors()), 0)
        if rows:
            self.reorder_cache(torch.arange(rows).repeat_interleave(repeats))


def _copied(layer: Any) -> Any:
    """An independent copy of a layer's memory; whom it belongs to is not copied."""
    owner = getattr(layer, "owner", None)
    memo = {} if owner is None else {id(owner): owner}
    return copy.deepcopy(layer, memo)

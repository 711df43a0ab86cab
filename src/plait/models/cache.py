"""The cache of a hybrid model: a transformers ``Cache`` whose layers hold the segments of their mixers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from plait.errors import CacheError, OptionError
from plait.mixers.context import Context
from plait.mixers.state import LayerState
from plait.models.configuration import PlaitConfig
from plait.models.recall import LONGEST, Recall

#: What transformers calls the cache in arguments and outputs: ``cache`` since 5.24, ``past_key_values`` before.
CACHE_NAME = next(f.name for f in fields(CausalLMOutputWithPast) if f.name in ("cache", "past_key_values"))


class PlaitCacheLayer(CacheLayerMixin):
    """One layer's :class:`~plait.mixers.state.LayerState` behind the interface of a transformers cache layer.

    Args:
        state: the segments that the layer's mixer reads and writes.
    """

    is_compileable = False
    is_sliding = False
    supports_early_init = False

    def __init__(self, state: LayerState) -> None:
        super().__init__()
        self.state = state
        self.slots = 0
        #: Whether what came in since the last crop is kept, so that it can be taken back (transformers' name).
        self.record_past = False
        self.recall: Recall | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy records nothing: what is recorded belongs to the model that wrote it."""
        return {**self.__dict__, "record_past": False, "recall": None}

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]
        """Whether the newest tokens can be taken back without a snapshot, whatever the length."""
        return self.record_past or self.state.always_crops

    @property
    def records(self) -> bool:
        """Whether the next pass has to be recorded."""
        return self.record_past and not self.state.always_crops

    def activate_past_recording(self) -> None:
        """Record from here on; ends with :meth:`PlaitCache.stop_recording`."""
        self.record_past = True

    def recorded(
        self,
        run: Callable[[Tensor, Context], Tensor],
        read: Callable[[Tensor, Context], Tensor],
        x: Tensor,
        context: Context,
    ) -> Tensor:
        """``run`` the layer on ``x`` and keep what is needed to take it back.

        Args:
            run: the layer, ``(B, T, d) -> (B, T, d)``.
            read: its mixer alone.
            x: ``(B, T, d)``.
            context: of the pass.
        """
        length, outputs = x.shape[1], []
        first = max(0, length - LONGEST) if self.recall is None else 0
        if first:
            outputs.append(run(x[:, :first], context.piece(0, first).for_layer(self.state)))
        if self.recall is None:
            self.recall = Recall(self.state.copy(), read)
        piece = context.piece(first, length)
        self.recall.inputs.append((x[:, first:].detach(), piece))
        outputs.append(run(x[:, first:], piece.for_layer(self.state)))
        return torch.cat(outputs, dim=1)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise CacheError("A layer of a PlaitCache is filled by its mixer; it takes no keys and values from outside.")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise CacheError("A layer of a PlaitCache is filled by its mixer; it takes no keys and values from outside.")

    def get_seq_length(self) -> int:
        """Slots seen, padding included; not what is stored."""
        return self.slots

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.slots + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.state.clear()
        self.slots, self.recall = 0, None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.state.select_rows(beam_idx)
        self.recall = None


@dataclass(frozen=True)
class CacheSnapshot:
    """What a cache held at one moment; independent of the cache and good for any number of restores."""

    states: tuple[LayerState, ...]
    slots: int
    padding: Tensor | None

    def bytes(self) -> int:
        """Bytes held."""
        return sum(state.bytes() for state in self.states)


class PlaitCache(Cache):
    """Memory of one batch of sequences, for decoding.

    Padding is counted per row, so positions stay right when chunks of different lengths are appended to the rows.

    Args:
        config: the model's configuration; each layer's mixer says which segments it needs.
        states: empty states of the layers, if they are at hand; by default they are made from ``config``.

    Example:
        >>> from plait.models import PlaitCache, PlaitConfig
        >>> PlaitCache(PlaitConfig(layer_types=["attention"])).get_seq_length()
        0
    """

    layers: list[PlaitCacheLayer]  # type: ignore[assignment]

    def __init__(self, config: PlaitConfig, states: Iterable[LayerState] | None = None) -> None:
        states = new_states(config) if states is None else states
        super().__init__(layers=[PlaitCacheLayer(state) for state in states])  # type: ignore[arg-type]
        #: ``(B,)`` padding slots seen in each row, or None while there were none.
        self.padding: Tensor | None = None

    @property
    def slots(self) -> int:
        """Slots seen in every row, padding included."""
        return self.layers[0].slots

    def advance(self, slots: int, padding: Tensor | None) -> None:
        """Count the slots of a forward pass, after its layers have written.

        Args:
            slots: T of the call.
            padding: ``(B,)`` padding slots of the call, or None.
        """
        for layer in self.layers:
            layer.slots += slots
        if padding is not None:
            self.padding = padding.clone() if self.padding is None else self.padding + padding

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Slots seen, padding included."""
        return self.slots

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Length and offset of the keys that a mask would need."""
        return self.slots + query_length, 0

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """Whether anything has been seen."""
        return self.slots > 0

    def bytes(self) -> int:
        """Bytes held by all layers, exactly (bookkeeping of a few integers per row aside)."""
        return sum(layer.state.bytes() for layer in self.layers)

    def snapshot(self) -> CacheSnapshot:
        """A copy of everything, to come back to with :meth:`restore`."""
        padding = None if self.padding is None else self.padding.clone()
        return CacheSnapshot(tuple(layer.state.copy() for layer in self.layers), self.slots, padding)

    def restore(self, snapshot: CacheSnapshot) -> None:
        """Back to what the cache held when the snapshot was taken.

        Raises:
            CacheError: the snapshot is of a model with other layers; the cache is unchanged then.
        """
        if [set(state.segments) for state in snapshot.states] != [set(layer.state.segments) for layer in self.layers]:
            raise CacheError(
                f"The snapshot has {len(snapshot.states)} layers of other kinds than this cache ({len(self.layers)} "
                "layers): restore it into a cache of the model that it was taken from."
            )
        for layer, state in zip(self.layers, snapshot.states, strict=True):
            layer.state, layer.slots, layer.recall = state.copy(), snapshot.slots, None
        self.padding = None if snapshot.padding is None else snapshot.padding.clone()

    def fork(self, n: int) -> PlaitCache:
        """A new cache with each row ``n`` times, row after row; this one is unchanged.

        A prefix that was computed once then serves ``n`` continuations.
        """
        if n < 1:
            raise CacheError(f"fork({n}) makes no sense: a cache has at least one copy of each row.")
        twin = copy.copy(self)
        twin.layers = [_shallow(layer) for layer in self.layers]
        twin.batch_repeat_interleave(n)  # writes new tensors
        return twin

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest tokens of every row.

        Full keys and values always can; other layers can while the cache records (``activate_past_recording()``, as
        generation with drafts does), up to the last crop.

        Args:
            tokens_to_remove: how many, as a negative number (the convention of transformers), or 0.

        Raises:
            CacheError: a layer cannot forget, or there is not so much to forget; nothing has changed then.
        """
        if tokens_to_remove > 0:
            raise CacheError(f"crop({tokens_to_remove}): give the number of tokens to forget as a negative number.")
        tokens = -tokens_to_remove
        if tokens == 0:
            self._forget_records()
            return
        for index, layer in enumerate(self.layers):
            if not layer.state.can_crop and layer.recall is None:
                kinds = sorted({type(s).__name__ for s in layer.state.segments.values() if not s.can_crop})
                raise CacheError(
                    f"Layer {index} cannot forget its last {tokens} tokens: they are folded into its state "
                    f"({', '.join(kinds)}). Take cache.snapshot() before these tokens and cache.restore() it."
                )
        shortest = self.slots - (0 if self.padding is None else int(self.padding.max()))
        if tokens > shortest:
            raise CacheError(f"Cannot forget {tokens} tokens: the shortest row of the cache has {shortest}.")
        replayed = [
            None if layer.state.can_crop or layer.recall is None else layer.recall.without(tokens)
            for layer in self.layers
        ]
        for layer, state in zip(self.layers, replayed, strict=True):
            if state is None:
                layer.state.crop(tokens)
            else:
                layer.state = state
            layer.slots -= tokens
        self._forget_records()

    def stop_recording(self) -> None:
        """Let go of what was recorded since :meth:`activate_past_recording`."""
        self._forget_records()
        for layer in self.layers:
            layer.record_past = False

    def _forget_records(self) -> None:
        for layer in self.layers:
            layer.recall = None

    def reset(self) -> None:
        """Back to empty."""
        super().reset()
        self.padding = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row ``beam_idx[i]`` was."""
        for layer in self.layers:
            layer.reorder_cache(beam_idx)
        if self.padding is not None:
            self.padding = self.padding.index_select(0, beam_idx.to(self.padding.device))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows named by ``indices`` (integers, or one boolean per row)."""
        self.reorder_cache(indices.nonzero().flatten() if indices.dtype == torch.bool else indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row, row after row."""
        tensors = list(_tensors(layer.state for layer in self.layers))
        if tensors:
            rows = torch.arange(tensors[0].shape[0], device=tensors[0].device)
            self.reorder_cache(rows.repeat_interleave(repeats))


def check_drafts(config: PlaitConfig, tokens: int | None) -> None:
    """Refuse longer drafts than a layer with a recurrent state can take back.

    Args:
        config: of the model.
        tokens: of a draft, as generation is told; None for no drafts.

    Raises:
        OptionError: more than :data:`~plait.models.recall.LONGEST`.
    """
    if tokens is not None and tokens > LONGEST and not all(state.always_crops for state in new_states(config)):
        raise OptionError(
            f"Drafts of {tokens} tokens are too long: layers with a recurrent state take back {LONGEST} at most. Set "
            f"prompt_lookup_num_tokens to {LONGEST} or less."
        )


def new_states(config: PlaitConfig) -> list[LayerState]:
    """Empty states of every layer; builds no weights."""
    with torch.device("meta"):
        mixers = [spec.type(config.dims, spec.options, index) for index, spec in enumerate(config.layers())]
    return [mixer.new_state() for mixer in mixers]


def _shallow(layer: PlaitCacheLayer) -> PlaitCacheLayer:
    """A layer with its own segments that still hold the same tensors."""
    twin = copy.copy(layer)
    twin.state = LayerState({name: copy.copy(segment) for name, segment in layer.state.segments.items()})
    return twin


def _tensors(states: Iterable[LayerState]) -> Iterable[Tensor]:
    for state in states:
        for segment in state.segments.values():
            for _, tensor in segment.tensors():
                yield tensor

"""Ties a policy to the softmax layers of plait's own models; linear mixers run as ever."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plait.errors import CacheError, OptionError
from plait.mixers.attention import Attention
from plait.mixers.context import Context
from plait.mixers.state import KeyValues, LayerState, Segment
from plait.policies.call import Forward, LayerInfo, ModelInfo, Scoring

if TYPE_CHECKING:
    from plait.policies.runtime import Applied


class Seen(Segment):
    """Tokens that a layer has seen under a policy.

    Args:
        owner: what applied the policy; a layer's memory belongs to it alone.
    """

    fields = ("real",)
    plain = ("owner", "slots")
    can_crop = True

    def __init__(self, owner: object) -> None:
        self.owner = owner
        #: ``(B,)`` real tokens of each row.
        self.real: Tensor | None = None
        #: Tokens of every row, padding included.
        self.slots = 0

    def bytes(self) -> int:
        return 0

    def crop(self, tokens: int) -> None:
        if self.real is not None:
            self.real = self.real - tokens
            self.slots -= tokens

    def clear(self) -> None:
        super().clear()
        self.slots = 0


class PlaitHooks:
    """The hooks of one applied policy on one :class:`~plait.models.PlaitForCausalLM`.

    Args:
        applied: the policy.
        model: the model.
    """

    def __init__(self, applied: Applied, model: nn.Module) -> None:
        self.applied = applied
        self.model = model
        self._before: list[tuple[Attention, Any]] = []

    def attach(self) -> ModelInfo:
        """See :class:`~plait.policies.runtime.Hooks`.

        Raises:
            OptionError: the model has no softmax layer.
        """
        modules = [m for m in self.model.modules() if isinstance(m, Attention) and type(m).forward is Attention.forward]
        if not modules:
            raise OptionError(
                f"This {type(self.model).__name__} has no softmax attention layer, so a policy has nothing to do: "
                "apply it to a model with 'attention' in its layer plan."
            )
        layers = []
        for module in modules:
            heads, kv_heads, size = module.sizes
            layer = LayerInfo(module.layer, heads, kv_heads, size, size, module.options.window)
            layers.append(layer)
            self._before.append((module, module.__dict__.get("forward")))
            module.forward = partial(self._attend, module, layer)  # type: ignore[method-assign]
        digest = hashlib.sha256(repr((type(self.model).__name__, layers)).encode()).hexdigest()[:16]
        return ModelInfo(type(self.model).__name__, tuple(layers), digest)

    def detach(self) -> None:
        """See :class:`~plait.policies.runtime.Hooks`."""
        for module, forward in self._before:
            del module.forward
            if forward is not None:  # an outer policy's
                module.forward = forward  # type: ignore[method-assign]
        self._before = []

    def _attend(self, module: Attention, layer: LayerInfo, x: Tensor, context: Context) -> Tensor:
        """What :meth:`~plait.mixers.attention.Attention.forward` does, with the policy in place of softmax."""
        if context.cu_seqlens is not None:
            raise OptionError("Packed documents are not supported under a policy: pad the batch instead.")
        if getattr(context, "sequence", None) is not None:
            raise OptionError("A policy does not run on a sequence that is spread over several processes.")
        q, k, v = module.queries_keys_values(x, context)
        forward = self._begin(q, layer, context)
        scored = self.applied.meter.pairs(layer.index) if context.pairs is not None else 0
        o = self.applied.attend(
            layer,
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            forward,
            Scoring(q.shape[-1] ** -0.5),
            context.state,
            x,
        )
        if context.pairs is not None:
            new = self.applied.meter.pairs(layer.index) - scored
            context.pairs[layer.index] = context.pairs.get(layer.index, 0) + new
        o = o.transpose(1, 2).flatten(2)
        if module.options.output_gate:
            o = o * torch.sigmoid(module.g_proj(x))
        return module.o_proj(o)

    def _begin(self, q: Tensor, layer: LayerInfo, context: Context) -> Forward:
        batch, length = q.shape[:2]
        past, slots = torch.zeros(batch, dtype=torch.long, device=q.device), 0
        real = context.real
        if context.state is not None:
            seen = self._seen(context.state, layer)
            past, slots = (past if seen.real is None else seen.real), seen.slots
            seen.real = past + (length if real is None else real.sum(1))
            seen.slots += length
        return Forward.begin(length, slots, past, bool((past == past[0]).all()), real)

    def _seen(self, state: LayerState, layer: LayerInfo) -> Seen:
        """The counter of a layer; at its first use the policy's memory takes the place of the layer's own."""
        seen = state.segments.get("seen")
        if seen is None:
            kv = state["kv"]
            if not isinstance(kv, KeyValues) or kv.keys is not None:
                raise CacheError("This cache was filled without the policy: start with a new cache.")
            seen = Seen(self.applied)
            state.segments.update(self.applied.new_state(layer).segments, seen=seen)
        assert isinstance(seen, Seen)
        if seen.owner is not self.applied:
            raise CacheError("This cache belongs to another policy: start with a new cache.")
        return seen

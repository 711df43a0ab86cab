"""Ties a policy to the softmax layers of plait's own models; linear mixers run as ever."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from plait.errors import CacheError, OptionError
from plait.mixers.attention import Attention
from plait.mixers.context import Context
from plait.mixers.state import KeyValues, LayerState, Segment
from plait.runtime.attachment import Attachment
from plait.runtime.call import Forward, LayerInfo, ModelInfo, Scoring
from plait.runtime.running import Running

#: Why policies cannot turn positions here.
NO_ROTATION = (
    "plait's own layers do not say how they rotated queries and keys. Models of transformers do: 'plait export' makes "
    "one of a model whose layers are all softmax attention."
)


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


class PlaitAttachment(Attachment):
    """What lets policies act on one :class:`~plait.models.PlaitForCausalLM`.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._restore: list[Callable[[], None]] = []
        self._handle: RemovableHandle | None = None

    @staticmethod
    def of(model: nn.Module) -> PlaitAttachment | None:
        routes = (module.__dict__.get("forward") for module in model.modules())
        return next((route.attachment for route in routes if isinstance(route, Route)), None)

    def attach(self) -> None:
        modules = [m for m in self.model.modules() if isinstance(m, Attention) and type(m).forward is Attention.forward]
        if not modules:
            raise OptionError(
                f"This {type(self.model).__name__} has no softmax attention layer, so a policy has nothing to do: "
                "apply it to a model with 'attention' in its layer plan."
            )
        if any(module._compiled_call_impl is not None for module in self.model.modules()):
            raise OptionError("A compiled model goes on without the policy: load it anew and do not compile it.")
        layers = []
        for module in modules:
            heads, kv_heads, size = module.sizes
            layer = LayerInfo(module.layer, heads, kv_heads, size, size, module.options.window)
            layers.append(layer)
            self._restore.append(partial(_put_back, module, module.__dict__.get("forward")))
            module.forward = Route(self, module, layer, module.forward)  # type: ignore[method-assign]
        self._handle = self.model.register_forward_pre_hook(self._before_forward)
        self.guard_generation(self._restore)
        digest = hashlib.sha256(repr((type(self.model).__name__, layers)).encode()).hexdigest()[:16]
        self.info = ModelInfo(type(self.model).__name__, tuple(layers), digest, NO_ROTATION)

    def detach(self) -> None:
        for undo in reversed(self._restore):
            undo()
        self._restore = []
        if self._handle is not None:
            self._handle.remove()

    def _before_forward(self, module: nn.Module, args: Any) -> None:
        applied = self.current()
        if applied is None:
            self.passes_without += 1
        else:
            applied.passes += 1


@dataclass(frozen=True)
class Route:
    """Takes a softmax layer's call to the policy of the calling thread, or to the layer itself where there is none.

    Args:
        attachment: knows the policies.
        module: the layer.
        layer: what policies are told of it.
        without: the layer's own ``forward``.
    """

    attachment: PlaitAttachment
    module: Attention
    layer: LayerInfo
    without: Callable[[Tensor, Context], Tensor]

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        applied = self.attachment.current()
        if applied is None:
            return self.without(x, context)
        return _attend(applied, self.module, self.layer, x, context)


def _put_back(module: nn.Module, forward: Any) -> None:
    """Undo a :class:`Route`; ``forward`` is what stood on the module itself before, or None."""
    del module.forward
    if forward is not None:
        module.forward = forward  # type: ignore[method-assign]


def _attend(applied: Running, module: Attention, layer: LayerInfo, x: Tensor, context: Context) -> Tensor:
    """What :meth:`~plait.mixers.attention.Attention.forward` does, with the policy in place of softmax."""
    if context.cu_seqlens is not None:
        raise OptionError("Packed documents are not supported under a policy: pad the batch instead.")
    if getattr(context, "sequence", None) is not None:
        raise OptionError("A policy does not run on a sequence that is spread over several processes.")
    q, k, v = module.queries_keys_values(x, context)
    forward = _begin(applied, q, layer, context)
    scored = applied.meter.pairs(layer.index) if context.pairs is not None else 0
    o = applied.attend(
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
        new = applied.meter.pairs(layer.index) - scored
        context.pairs[layer.index] = context.pairs.get(layer.index, 0) + new
    o = o.transpose(1, 2).flatten(2)
    if module.options.output_gate:
        o = o * torch.sigmoid(module.g_proj(x))
    return module.o_proj(o)


def _begin(applied: Running, q: Tensor, layer: LayerInfo, context: Context) -> Forward:
    batch, length = q.shape[:2]
    past, slots = torch.zeros(batch, dtype=torch.long, device=q.device), 0
    real = context.real
    if context.state is not None:
        seen = _seen(applied, context.state, layer)
        past, slots = (past if seen.real is None else seen.real), seen.slots
        seen.real = past + (length if real is None else real.sum(1))
        seen.slots += length
    return Forward.begin(length, slots, past, bool((past == past[0]).all()), real)


def _seen(applied: Running, state: LayerState, layer: LayerInfo) -> Seen:
    """The counter of a layer; at its first use the policy's memory takes the place of the layer's own."""
    seen = state.segments.get("seen")
    if seen is None:
        kv = state["kv"]
        if not isinstance(kv, KeyValues) or kv.keys is not None:
            raise CacheError("This cache was filled without the policy: start with a new cache.")
        seen = Seen(applied)
        state.segments.update(applied.new_state(layer).segments, seen=seen)
    assert isinstance(seen, Seen)
    if seen.owner is not applied:
        raise CacheError("This cache belongs to another policy: start with a new cache.")
    return seen

"""Ties a policy to the softmax layers of plait's own models; linear mixers run as ever."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from plait.errors import CacheError, OptionError
from plait.mixers.context import Context
from plait.mixers.softmax_mixer import SoftmaxMixer
from plait.mixers.state import LayerState, Segment
from plait.ops.visibility import Causal, Visibility, Window
from plait.runtime.artefact import weights_fingerprint
from plait.runtime.attachment import Attachment
from plait.runtime.call import Forward, LayerInfo, ModelInfo
from plait.runtime.rope import PlaitRope
from plait.runtime.running import Running


class Owned(Segment):
    """Says whose a layer's memory is.

    Args:
        owner: what applied the policy; the memory belongs to it alone.
    """

    plain = ("owner",)
    can_crop = True

    def __init__(self, owner: object) -> None:
        self.owner = owner

    def crop(self, tokens: int) -> None:
        """Nothing to do: it holds no tokens."""


class PlaitAttachment(Attachment):
    """What lets policies act on one :class:`~plait.models.PlaitForCausalLM`.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._restore: list[Callable[[], None]] = []
        self._handle: RemovableHandle | None = None
        self._thread = threading.local()

    @staticmethod
    def of(model: nn.Module) -> PlaitAttachment | None:
        routes = (module.__dict__.get("forward") for module in model.modules())
        return next((route.attachment for route in routes if isinstance(route, Route)), None)

    def attach(self) -> None:
        modules: dict[Any, Visibility] = {}
        for module in self.model.modules():
            seen = module.visibility() if isinstance(module, SoftmaxMixer) else None
            if seen is not None:
                modules[module] = seen
        if not modules:
            raise OptionError(
                f"This {type(self.model).__name__} has no softmax attention layer, so a policy has nothing to do: "
                "apply it to a model with 'attention' in its layer plan."
            )
        if any(module._compiled_call_impl is not None for module in self.model.modules()):
            raise OptionError("A compiled model goes on without the policy: load it anew and do not compile it.")
        layers, ropes = [], []
        for module, seen in modules.items():
            heads, kv_heads, key_dim, value_dim = module.head_sizes()
            layer = LayerInfo(module.layer, heads, kv_heads, key_dim, value_dim, _window(module, seen))
            rope = _rope(module)
            layers.append(layer)
            ropes.append(rope)
            self._restore.append(partial(_put_back, module, module.__dict__.get("forward")))
            module.forward = Route(self, module, layer, rope, module.forward)
        self._handle = self.model.register_forward_pre_hook(self._before_forward)
        self.guard_generation(self._restore)
        digest = hashlib.sha256(repr((type(self.model).__name__, layers)).encode()).hexdigest()[:16]
        unrotated = [layer.index for layer, rope in zip(layers, ropes, strict=True) if rope is None]
        reason = f"its layers {unrotated} have no rotary positions" if unrotated else None
        weigh = partial(weights_fingerprint, self.model)
        self.info = ModelInfo(type(self.model).__name__, tuple(layers), digest, reason, weigh)

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

    def forward_of(self, context: Context) -> Forward:
        """Where the tokens of a pass stand; all layers of the pass share it."""
        kept: tuple[object, Forward] | None = getattr(self._thread, "forward_pass", None)
        if kept is None or kept[0] is not context.tables:  # which all layers of a pass share
            length, past = context.index.shape[1], context.seen
            forward = Forward.begin(length, int(past.max()), past, bool((past == past[0]).all()), context.real)
            kept = self._thread.forward_pass = (context.tables, forward)
        return kept[1]


@dataclass(frozen=True)
class Route:
    """Takes a softmax layer's call to the policy of the calling thread, or to the layer itself where there is none.

    Args:
        attachment: knows the policies.
        module: the layer.
        layer: what policies are told of it.
        rope: its rotary embedding, or None.
        without: the layer's own ``forward``.
    """

    attachment: PlaitAttachment
    module: Any
    layer: LayerInfo
    rope: PlaitRope | None
    without: Callable[[Tensor, Context], Tensor]

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        applied = self.attachment.current()
        return self.without(x, context) if applied is None else self.attend(applied, x, context)

    def attend(self, applied: Running, x: Tensor, context: Context) -> Tensor:
        """The layer with the policy in place of softmax."""
        if context.cu_seqlens is not None:
            raise OptionError("Packed documents are not supported under a policy: pad the batch instead.")
        if context.sequence is not None:
            raise OptionError("A policy does not run on a sequence that is spread over several processes.")
        parts = self.module.queries_keys_values(x, context)
        if context.state is not None:
            self._take_over(applied, context.state)
        index = self.layer.index
        scored = applied.meter.pairs(index) if context.pairs is not None else 0
        rope = self.rope
        rope = rope if rope is None else rope.at(context.positions)
        q, k, v = (part.transpose(1, 2) for part in parts)
        forward, scoring = self.attachment.forward_of(context), self.module.scoring()
        o = applied.attend(self.layer, q, k, v, forward, scoring, context.state, x, rope)
        if context.pairs is not None:
            context.pairs[index] = context.pairs.get(index, 0) + applied.meter.pairs(index) - scored
        return self.module.finish(o.transpose(1, 2), x, parts, context)

    def _take_over(self, applied: Running, state: LayerState) -> None:
        """At its first use the policy's memory takes the place of the layer's own keys."""
        owned = state.segments.get("owned")
        if owned is None:
            if any(True for _ in state[self.module.keys_in].tensors()):
                raise CacheError("This cache was filled without the policy: start with a new cache.")
            del state.segments[self.module.keys_in]
            state.segments.update(applied.new_state(self.layer).segments, owned=Owned(applied))
        elif owned.owner is not applied:  # type: ignore[attr-defined]
            raise CacheError("This cache belongs to another policy: start with a new cache.")


def _window(module: SoftmaxMixer, seen: Visibility) -> int | None:
    """Tokens that a layer itself lets a query see; None for all."""
    if isinstance(seen, Window) and not seen.sinks:
        return seen.window
    if isinstance(seen, Causal):
        return None
    raise OptionError(
        f"Layer {module.layer} ({type(module).__name__}) attends over {seen}: policies serve layers that see all "
        "earlier tokens or the last ones."
    )


def _rope(module: SoftmaxMixer) -> PlaitRope | None:
    turn = module.rotation()
    return None if turn is None else PlaitRope(turn.base, turn.first, turn.width, type(module).__name__)


def _put_back(module: nn.Module, forward: Any) -> None:
    """Undo a :class:`Route`; ``forward`` is what stood on the module itself before, or None."""
    del module.forward
    if forward is not None:
        module.forward = forward  # type: ignore[method-assign]

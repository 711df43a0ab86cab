"""Policies made of policies: one for prefill and one for decoding, or one for each layer. They nest."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from plait import catalog
from plait.errors import OptionError
from plait.mixers.state import LayerState
from plait.options import Options
from plait.policies.build import Spec, build
from plait.policies.quest import QuestOptions
from plait.policies.streaming import StreamingOptions
from plait.policies.vertical_slash import VerticalSlashOptions
from plait.runtime.call import Call, LayerInfo, ModelInfo
from plait.runtime.dense import Dense
from plait.runtime.policy import Policy


@dataclass(frozen=True)
class PrefillDecodeOptions(Options):
    """Options of a prefill policy with a decoding policy.

    Args:
        prefill: the policy of prompts, as a name or as a mapping with ``name`` and its options.
        decode: the policy of single tokens, likewise.
    """

    method: ClassVar[str] = "prefill_decode"
    prefill: Spec = "vertical_slash"
    decode: Spec = "quest"

    @classmethod
    def small(cls, dims: Any = None) -> Self:
        prefill, decode = VerticalSlashOptions.small(), QuestOptions.small()
        return cls({"name": prefill.method, **asdict(prefill)}, {"name": decode.method, **asdict(decode)})


class PrefillDecode(Policy):
    """Prompts by one policy, decoded tokens by another. Any two go together.

    Each has its memory under its own name, ``prefill.`` or ``decode.``, and sees every token. A prefill policy that
    needs nothing but keys and values reads those of the decoding policy, and has no memory then.

    Args:
        options: both policies as options.
    """

    Options = PrefillDecodeOptions
    options: PrefillDecodeOptions
    reduces = ("prefill", "decode")

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.before, self.after = build(self.options.prefill), build(self.options.decode)
        self.looks_ahead = self.before.looks_ahead
        self._dense = Dense()

    @classmethod
    def with_budget(cls, budget: int, length: int) -> dict[str, Any]:
        return {
            "prefill": _spec("vertical_slash", budget, length),
            "decode": _spec("quest", budget, length),
        }

    def bind(self, model: ModelInfo) -> None:
        self.before.bind(model)
        self.after.bind(model)

    def serves(self, layer: LayerInfo) -> bool:
        return self.before.serves(layer) or self.after.serves(layer)

    def parts(self, layer: LayerInfo) -> tuple[Policy, Policy]:
        """What acts in a layer, in prompts and in decoding."""
        before, after = (p.of(layer) if p.serves(layer) else self._dense for p in (self.before, self.after))
        return before, after

    def new_state(self, layer: LayerInfo) -> LayerState:
        before, after = self.parts(layer)
        memories = {"decode": after.new_state(layer)}
        if before.keeps_own or not after.lends or "kv" not in memories["decode"].segments:
            memories["prefill"] = before.new_state(layer)
        named = ((f"{part}.{name}", s) for part, state in memories.items() for name, s in state.segments.items())
        return LayerState(dict(named))

    def attend(self, call: Call) -> Tensor:
        before, after = self.parts(call.layer)
        own, others = (_in_namespace(call, name) for name in ("prefill", "decode"))
        if call.phase == "decode":
            o = after.attend(others)
            if own.state.segments:
                before.observe(own)
        elif own.state.segments:
            o = before.attend(own)
            after.observe(others)
        else:
            after.write(others)
            o = before.prefill(others)
            after.watch(others)
            after.trim(others)
        return o

    def observe(self, call: Call) -> None:
        for part, name in zip(self.parts(call.layer), ("prefill", "decode"), strict=True):
            mine = _in_namespace(call, name)
            if mine.state.segments:
                part.observe(mine)


def _in_namespace(call: Call, name: str) -> Call:
    """The call with the segments ``name.*`` alone, under their own names."""
    start = f"{name}."
    segments = {key.removeprefix(start): s for key, s in call.state.segments.items() if key.startswith(start)}
    return replace(call, state=LayerState(segments))


@dataclass(frozen=True)
class PerLayerOptions(Options):
    """Options of policies by layer.

    Args:
        layers: policies by layer, ``"3"`` for one layer or ``"4-7"`` for several; each a name or a mapping with
            ``name`` and its options.
        otherwise: the policy of all other layers.
    """

    method: ClassVar[str] = "per_layer"
    layers: dict[str, Spec] = field(default_factory=dict)
    otherwise: Spec = "dense"

    @classmethod
    def small(cls, dims: Any = None) -> Self:
        window = StreamingOptions.small()
        return cls(layers={"0": {"name": window.method, **asdict(window)}})


class PerLayer(Policy):
    """Another policy in each layer.

    Args:
        options: the policies as options.
    """

    Options = PerLayerOptions
    options: PerLayerOptions
    reduces = ("prefill", "decode")

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._otherwise = build(self.options.otherwise)
        self._layers: dict[int, Policy] = {}
        for name, spec in self.options.layers.items():
            policy = build(spec)
            for index in _layers(name):
                if index in self._layers:
                    raise OptionError(f"Policy 'per_layer', option layers: layer {index} is named twice.")
                self._layers[index] = policy
        self.looks_ahead = any(policy.looks_ahead for policy in (*self._layers.values(), self._otherwise))

    @classmethod
    def with_budget(cls, budget: int, length: int) -> dict[str, Any]:
        return {"layers": {"0": _spec("snapkv", budget, length)}, "otherwise": _spec("streaming", budget, length)}

    def bind(self, model: ModelInfo) -> None:
        known = {layer.index for layer in model.layers}
        unknown = sorted(set(self._layers) - known)
        if unknown:
            raise OptionError(
                f"Policy 'per_layer', option layers: {model.name} has no softmax layers {unknown}; it has "
                f"{sorted(known)}."
            )
        for layer in model.layers:
            if layer.index in self._layers and not self.serves(layer):
                raise OptionError(
                    f"Policy 'per_layer', option layers: layer {layer.index} attends within a window of its own "
                    f"({layer.window} tokens), where {type(self.of(layer)).__name__} does nothing; leave it out."
                )
        for policy in {id(p): p for p in (*self._layers.values(), self._otherwise)}.values():
            policy.bind(model)

    def of(self, layer: LayerInfo) -> Policy:
        return self._chosen(layer).of(layer)

    def _chosen(self, layer: LayerInfo) -> Policy:
        return self._layers.get(layer.index, self._otherwise)

    def serves(self, layer: LayerInfo) -> bool:
        return self._chosen(layer).serves(layer)

    def new_state(self, layer: LayerInfo) -> LayerState:
        return self.of(layer).new_state(layer)

    def attend(self, call: Call) -> Tensor:
        return self.of(call.layer).attend(call)

    def observe(self, call: Call) -> None:
        self.of(call.layer).observe(call)


def _spec(name: str, budget: int, length: int) -> Spec:
    kind: type[Policy] = catalog.get(name, "policy").load()
    return {"name": name, **kind.with_budget(budget, length)}


def _layers(name: str) -> range:
    """``"3"`` or ``"4-7"`` as indices."""
    first, dash, last = name.partition("-")
    if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
        raise OptionError(f"Policy 'per_layer', option layers: {name!r} names no layers; write '3' or '4-7'.")
    return range(int(first), int(last if dash else first) + 1)

"""Policies made of policies: one for prefill and one for decoding, or one for each layer. They nest."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
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
from plait.runtime.policy import Policy


@dataclass(frozen=True)
class PrefillDecodeOptions(Options):
    """Options of a prefill policy with a decoding policy.

    Args:
        prefill: the policy of prompts, as a name or as a mapping with ``name`` and its options.
        decode: the policy of single tokens, likewise; what is kept in memory is its business.
    """

    method: ClassVar[str] = "prefill_decode"
    prefill: Spec = "vertical_slash"
    decode: Spec = "quest"

    @classmethod
    def small(cls, dims: Any = None) -> Self:
        prefill, decode = VerticalSlashOptions.small(), QuestOptions.small()
        return cls({"name": prefill.method, **asdict(prefill)}, {"name": decode.method, **asdict(decode)})


class PrefillDecode(Policy):
    """Prompts by one policy, decoded tokens and the memory by another.

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
        own = type(self.before)
        if any(getattr(own, name) is not getattr(Policy, name) for name in ("attend", "write", "new_state")):
            raise self._refusal("prefill", self.options.prefill, "keeps a memory of its own")
        if type(self.after).attend is not Policy.attend:
            raise self._refusal("decode", self.options.decode, "attends in its own way")

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
        return self.before.serves(layer) and self.after.serves(layer)

    def new_state(self, layer: LayerInfo) -> LayerState:
        return self.after.new_state(layer)

    def write(self, call: Call) -> None:
        self.after.write(call)

    def prefill(self, call: Call) -> Tensor:
        return self.before.prefill(call)

    def decode(self, call: Call) -> Tensor:
        return self.after.decode(call)

    def trim(self, call: Call) -> None:
        self.after.trim(call)

    @staticmethod
    def _refusal(role: str, spec: Spec, reason: str) -> OptionError:
        return OptionError(f"Policy 'prefill_decode', option {role}={spec!r}: that policy {reason}; take another one.")


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
        """The policy of a layer."""
        return self._layers.get(layer.index, self._otherwise)

    def serves(self, layer: LayerInfo) -> bool:
        return self.of(layer).serves(layer)

    def new_state(self, layer: LayerInfo) -> LayerState:
        return self.of(layer).new_state(layer)

    def attend(self, call: Call) -> Tensor:
        return self.of(call.layer).attend(call)


def _spec(name: str, budget: int, length: int) -> Spec:
    kind: type[Policy] = catalog.get(name, "policy").load()
    return {"name": name, **kind.with_budget(budget, length)}


def _layers(name: str) -> range:
    """``"3"`` or ``"4-7"`` as indices."""
    first, dash, last = name.partition("-")
    if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
        raise OptionError(f"Policy 'per_layer', option layers: {name!r} names no layers; write '3' or '4-7'.")
    return range(int(first), int(last if dash else first) + 1)

"""Ties policies to a decoder of transformers. Every private name of transformers that policies need is used here only.

One attention function and one mask function are registered, once, under one name. While a policy is applied, the
decoder and its attention modules hold a copy of their configuration. To a thread that entered a policy it names these
functions, to every other one the attention that the model had.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from plait.errors import CacheError, OptionError, PlaitError
from plait.models.cache import CACHE_NAME
from plait.runtime.artefact import weights_fingerprint
from plait.runtime.attachment import Attachment, trial
from plait.runtime.cache import PolicyCache
from plait.runtime.call import Forward, LayerInfo, ModelInfo, Scoring
from plait.runtime.hybrid_cache import HybridPolicyCache, recurrent_layers
from plait.runtime.rope import Rope, TransformersRope
from plait.runtime.running import Running

#: Name of the attention and mask functions in the registries of transformers.
NAME = "plait_policy"

#: Arguments of an attention function that stand for packed documents.
PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens")
#: Arguments of an attention function that change nothing of what it computes.
HARMLESS = frozenset(
    ("is_causal", "layer_idx", "logits_to_keep", "position_embeddings", "position_ids", "return_dict", "use_cache")
    + ("cache", "cache_position", "past_key_values", "output_attentions", "output_hidden_states")
    + ("output_router_logits", "num_items_in_batch", "kwargs")
)

#: Types of layers, as transformers calls them, whose attention a policy can serve: those of its hybrids have recurrent
#: heads beside it.
SERVED = ("full_attention", "sliding_attention", "attention", "hybrid", "hybrid_sliding")

_attached: dict[int, TransformersAttachment] = {}


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The registered attention function."""
    attachment = _attached.get(id(module.config))
    if attachment is None:
        raise OptionError(
            f"{type(module).__name__} asks for the attention function {NAME!r}, but no policy is applied to its model: "
            "use `with plait.policy(model, ...)` and leave its attn_implementation alone."
        )
    return attachment.attend(module, query, key, value, *args, **kwargs), None


def _mask(*args: Any, attention_mask: Tensor | None = None, use_vmap: bool = False, **kwargs: Any) -> Tensor | None:
    """The registered mask function: the raw padding mask ``(B, seen)``; all structure is the policy's."""
    if use_vmap:
        raise OptionError(
            "This call overlays a mask of its own on the causal one (images, prefixes or documents that see each "
            "other); a policy handles plain causal attention only."
        )
    return attention_mask


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)


@dataclass
class Pass:
    """One forward pass of one thread: what its attention functions are not told.

    Args:
        seen: tokens of each row before it, padding included.
        forward: where its tokens stand; made by its first attention layer.
        key: mask, rows and tokens that ``forward`` was made from.
        inputs: of the attention modules, by id: input, tables of rotation, cache.
    """

    seen: int = 0
    forward: Forward | None = None
    key: tuple[Tensor | None, int, int] | None = None
    inputs: dict[int, tuple[Tensor | None, Any, PolicyCache | None]] = field(default_factory=dict)


class TransformersAttachment(Attachment):
    """What lets policies act on one decoder.

    Args:
        model: the decoder.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.layers: dict[int, LayerInfo] = {}
        self.modules: dict[int, nn.Module] = {}
        self.ropes: dict[int, Rope] = {}
        #: Layers without attention, by index.
        self.recurrent: dict[int, str] = {}
        #: Whether some layers hold recurrent states, alone or beside softmax heads.
        self.hybrid = False
        self._thread = threading.local()
        self._handles: list[RemovableHandle] = []
        self._restore: list[Callable[[], None]] = []
        self._config: Any = None
        self._rotation: str | None = None

    @staticmethod
    def of(model: nn.Module) -> TransformersAttachment | None:
        """The attachment of a model, or of a model around or inside it."""
        configs = (getattr(module, "config", None) for module in model.modules())
        return next((_attached[id(config)] for config in configs if id(config) in _attached), None)

    def attach(self) -> None:
        model = _supported(self.model)
        config = model.config.get_text_config(decoder=True)
        self._config = _by_thread(config, self)
        _attached[id(self._config)] = self
        try:
            for module in model.modules():
                if getattr(module, "config", None) is config:
                    self._restore.append(lambda module=module: setattr(module, "config", config))  # type: ignore[misc]
                    module.config = self._config
            with _generator_kept(model):
                self._record(model)
                self._check_layers(config)
                kinds = getattr(config, "layer_types", None) or ()
                self.hybrid = bool(self.recurrent) or any("hybrid" in kind for kind in kinds)
                self._hook(model)
                self._try(model)
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        for undo in reversed(self._restore):
            undo()
        _attached.pop(id(self._config), None)
        self._handles, self._restore = [], []

    def answers(self) -> bool:
        """Whether the calling thread's attention is a policy's."""
        return getattr(self._thread, "recording", False) or self.current() is not None

    def _hook(self, model: PreTrainedModel) -> None:
        for module in model.modules():
            if isinstance(module, PreTrainedModel) and module.config is self._config:
                self._handles.append(module.register_forward_pre_hook(self._before_forward, with_kwargs=True))
        for index, module in self.modules.items():
            self.ropes[index] = TransformersRope.of(module, model)
            self._handles.append(module.register_forward_pre_hook(self._before_attention, with_kwargs=True))
        self.guard_generation(self._restore)

    def _record(self, model: PreTrainedModel) -> None:
        """Three tokens, one of them padding, show which modules attend, and how."""
        self._thread.recording = True
        try:
            _short_pass(model, use_cache=False)
        finally:
            self._thread.recording = False

    def _try(self, model: PreTrainedModel) -> None:
        """The same tokens under dense attention with a policy's cache: what fails, fails on entry."""
        with trial(self):
            _short_pass(model, use_cache=True)
        layers = tuple(self.layers[index] for index in sorted(self.layers))
        digest = hashlib.sha256(repr((type(model).__name__, layers)).encode()).hexdigest()[:16]
        self.info = ModelInfo(type(model).__name__, layers, digest, self._rotation, partial(weights_fingerprint, model))

    def _check_layers(self, config: Any) -> None:
        name, depth = type(self.model).__name__, config.num_hidden_layers
        self.recurrent = recurrent_layers(config) if set(self.layers) != set(range(depth)) else {}
        missing = sorted(set(range(depth)) - set(self.layers) - set(self.recurrent))
        if missing or not self.layers:
            raise _refusal(self.model, f"layers {missing} of {name} do not attend through the interface")
        kinds = dict(enumerate(getattr(config, "layer_types", None) or ()))
        for index in self.layers:
            kind = kinds.get(index, "full_attention")
            if kind not in SERVED:
                raise _refusal(self.model, f"layer {index} is of type {kind!r}")
            if "sliding" in kind and self.layers[index].window is None:
                raise _refusal(self.model, f"layer {index} slides but does not say how far")

    @property
    def _pass(self) -> Pass:
        """The calling thread's forward pass."""
        if not hasattr(self._thread, "forward_pass"):
            self._thread.forward_pass = Pass()
        current: Pass = self._thread.forward_pass
        return current

    def _before_forward(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Put the policy's cache under the decoder and begin a forward pass."""
        applied = self.current()
        if applied is None:
            self.passes_without += 1
            return None
        bound = inspect.signature(module.forward).bind_partial(*args, **kwargs)
        arguments = bound.arguments
        extra = arguments.get("kwargs", {})
        asked = [{**extra, **arguments}.get(name) for name in ("output_attentions", "encoder_hidden_states")]
        if asked[0] or (asked[0] is None and getattr(module.config, "output_attentions", False)):
            raise OptionError("A policy makes no attention weights: leave out output_attentions, or use plait.probe.")
        if asked[1] is not None:
            raise OptionError("A policy serves no cross attention: leave out encoder_hidden_states.")
        names = [name for name in (CACHE_NAME, "past_key_values", "cache") if kwargs.get(name) is not None]
        name = names[0] if names else CACHE_NAME
        given = kwargs.get(name, arguments.get(CACHE_NAME))
        use_cache = arguments.get("use_cache", extra.get("use_cache"))
        cache = self._cache_for(applied, module, given, use_cache)
        self._thread.forward_pass = Pass(seen=0 if cache is None else cache.slots)
        applied.passes += 1
        mask = arguments.get("attention_mask")
        _refuse_structure(mask, arguments.get("position_ids"), given is not None)
        if cache is given and use_cache is None:  # the model must not make a cache of its own
            return args, {**kwargs, "use_cache": cache is not None}
        if cache is given:
            return None
        if CACHE_NAME in arguments and CACHE_NAME not in kwargs:
            raise CacheError(f"Pass {CACHE_NAME} by name, so that the policy can put its own cache there.")
        return args, {**kwargs, name: cache}

    def _cache_for(self, applied: Running, module: Any, given: Any, use_cache: bool | None) -> PolicyCache | None:
        if isinstance(given, PolicyCache):
            if given.owner is not applied:
                raise CacheError("This cache belongs to another policy: start with a new cache.")
            return given
        if given is not None:
            if type(given) is not DynamicCache or given.offloading:
                raise CacheError(
                    f"A policy keeps its own cache, it cannot use a {type(given).__name__}: leave out the cache and "
                    "cache_implementation."
                )
            if given.get_seq_length() > 0:
                raise CacheError("This cache was filled without the policy: start with a new cache.")
            return self.new_cache(applied)
        wanted = (module.config.use_cache and not module.training) if use_cache is None else use_cache
        return self.new_cache(applied) if wanted else None

    def new_cache(self, applied: Running) -> PolicyCache:
        """An empty cache."""
        states = {index: applied.new_state(self.layers[index]) for index in sorted(self.layers)}
        if self.hybrid:
            return HybridPolicyCache(self._config, states, applied)
        return PolicyCache(states.values(), applied)

    def _before_attention(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Remember what the attention function is not told."""
        if self.current() is None:
            return
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        tables = kwargs.get("position_embeddings")
        cache = next((value for value in (*kwargs.values(), *args) if isinstance(value, Cache)), None)
        if cache is not None and not isinstance(cache, PolicyCache):
            raise CacheError(f"{type(module).__name__} was given a {type(cache).__name__}: leave out the cache.")
        self._pass.inputs[id(module)] = (hidden, tables, cache)

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The attention function of a bound module, ``(B, T, H, Dv)``."""
        if getattr(self._thread, "recording", False):
            self._note(module, query, key, value, attention_mask, sliding_window, kwargs)
            return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
        applied = self.current()
        if applied is None:
            raise OptionError(f"The policy ended while {type(module).__name__} was running under it.")
        if dropout and not applied.tries:
            raise OptionError("A policy does not drop attention weights: call model.eval() or set attention_dropout=0.")
        for name in PACKED:
            if kwargs.get(name) is not None:
                raise OptionError(f"Packed documents ({name}) are not supported under a policy: pad the batch instead.")
        hidden, tables, cache = self._pass.inputs.pop(id(module), (None, None, None))
        layer, rope = self.layers[module.layer_idx], self.ropes[module.layer_idx].at(tables)
        if applied.tries and self._rotation is None:
            self._rotation = rope.refusal(query)
        o = applied.attend(
            layer,
            query,
            key,
            value,
            self._arranged(query, attention_mask, cache),
            Scoring(query.shape[-1] ** -0.5 if scaling is None else float(scaling), softcap, s_aux),
            None if cache is None else cache.layers[layer.index].state,
            hidden,
            rope,
        )
        return o.transpose(1, 2).contiguous()

    def _arranged(self, query: Tensor, mask: Tensor | None, cache: PolicyCache | None) -> Forward:
        """Where the tokens of this pass stand.

        Gradient checkpointing runs layers of an earlier pass again: these have no cache, and another mask.
        """
        now, batch, length = self._pass, query.shape[0], query.shape[2]
        stale = cache is None and now.key is not None and (now.key[0] is not mask or now.key[1:] != (batch, length))
        if now.forward is None or stale:
            now.forward, now.key = self._begin(query, mask, cache), (mask, batch, length)
        return now.forward

    def _begin(self, query: Tensor, mask: Tensor | None, cache: PolicyCache | None) -> Forward:
        """Which of the new tokens are real and how many were before them in each row."""
        batch, length, device = query.shape[0], query.shape[2], query.device
        seen = 0 if cache is None else self._pass.seen
        padding = torch.zeros(batch, dtype=torch.long, device=device)
        if cache is not None and cache.padding is not None:
            padding = cache.padding.to(device)
        past = seen - padding
        real = None
        if mask is not None:
            if mask.dim() != 2 or mask.shape[1] != seen + length:
                raise OptionError(
                    f"attention_mask has shape {tuple(mask.shape)}; a policy needs a padding mask of the "
                    f"{seen + length} tokens seen so far, {(batch, seen + length)}."
                )
            real = mask[:, seen:].bool()
        if cache is not None and real is not None and not bool(real.all()):
            cache.padding = padding + (~real).sum(1)
        return Forward.begin(length, seen, past, bool((past == past[0]).all()), real)

    def _note(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        window: int | None,
        kwargs: dict[str, Any],
    ) -> None:
        """Write down what an attention module is like, or refuse it."""
        name = type(module).__name__
        if getattr(module, "layer_idx", None) is None:
            raise _refusal(self.model, f"{name} does not know its layer")
        if kwargs.get("position_bias") is not None:
            raise _refusal(self.model, f"{name} adds a position bias to its scores")
        if not getattr(module, "is_causal", True) or kwargs.get("is_causal") is False:
            raise _refusal(self.model, f"{name} is not causal")
        if module.layer_idx in self.layers:
            raise _refusal(self.model, f"layer {module.layer_idx} attends more than once")
        if not isinstance(mask, Tensor):
            raise _refusal(self.model, f"{name} is not told which tokens are padding")
        if mask.dim() != 2:
            raise _refusal(self.model, f"{name} makes a mask of its own, of shape {tuple(mask.shape)}")
        others = sorted(k for k, v in kwargs.items() if v is not None and k not in HARMLESS and k not in PACKED)
        if others:
            raise _refusal(self.model, f"{name} attends with {', '.join(others)}, which policies do not know")
        self.modules[module.layer_idx] = module
        self.layers[module.layer_idx] = LayerInfo(
            module.layer_idx, query.shape[1], key.shape[1], key.shape[-1], value.shape[-1], window
        )


def _supported(model: nn.Module) -> PreTrainedModel:
    """The model, if its class and configuration can carry a policy at all."""
    if not isinstance(model, PreTrainedModel):
        inner = getattr(model, "_orig_mod", None)
        if isinstance(inner, PreTrainedModel):
            raise _refusal(inner, "it is compiled; apply the policy to the model before torch.compile")
        raise OptionError(f"A policy needs a decoder of transformers or of plait, not a {type(model).__name__}.")
    if any(_compiled(module) for module in model.modules()):
        raise _refusal(model, "it is compiled, and what was compiled goes on without the policy; load it anew")
    decoders = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    config = model.config.get_text_config(decoder=True)
    if model.config.is_encoder_decoder:
        raise _refusal(model, "it is an encoder-decoder")
    if getattr(config, "add_cross_attention", False) or getattr(config, "cross_attention_layers", None):
        raise _refusal(model, "some of its layers attend to another sequence")
    own = next((type(m).__name__ for m in decoders if not m._can_set_attn_implementation()), None)
    if own is not None:
        raise _refusal(model, f"{own} has its own attention code")
    apart = sorted({int(m.layer_idx) for m in model.modules() if _is_apart(m, config)})  # type: ignore[arg-type]
    if apart:
        raise _refusal(model, f"layers {apart} have configurations of their own")
    kept = next((type(m).__name__ for m in model.modules() if hasattr(m, "_setup_cache")), None)
    if kept is not None:
        raise _refusal(model, f"{kept} keeps its recurrent states in the model itself, not in a cache")
    caches = _own_caches(model)
    if caches:
        raise _refusal(model, f"it takes no cache but its own {caches[0]}")
    if getattr(config, "num_kv_shared_layers", 0) or "reuse" in (getattr(config, "kv_sharing_modes", None) or ()):
        raise _refusal(model, "some of its layers reuse the keys of others")
    if not getattr(config, "is_causal", True):
        raise _refusal(model, "it is bidirectional")
    return model


def _own_caches(model: nn.Module) -> list[str]:
    """Names of caches that a model's own file defines."""
    file = type(model).__module__
    found = vars(sys.modules[file]).values()
    return [x.__name__ for x in found if isinstance(x, type) and issubclass(x, Cache) and x.__module__ == file]


def _compiled(module: nn.Module) -> bool:
    """Whether ``module.compile()`` was called, or its ``forward`` is compiled."""
    return module._compiled_call_impl is not None or hasattr(module.forward, "_torchdynamo_orig_callable")


def _is_apart(module: nn.Module, config: Any) -> bool:
    """Whether an attention layer of this decoder has another object of configuration, as for one layer's own kernel."""
    own = getattr(module, "config", None)
    return isinstance(getattr(module, "layer_idx", None), int) and type(own) is type(config) and own is not config


def _by_thread(config: Any, attachment: TransformersAttachment) -> Any:
    """A copy of a configuration whose attention implementation depends on the thread that reads it."""
    kind, field_name = type(config), "_attn_implementation_internal"
    twin = copy.copy(config)

    def read(self: Any) -> Any:
        return NAME if self is twin and attachment.answers() else self.__dict__.get(field_name)

    def write(self: Any, value: Any) -> None:
        if self is twin:
            raise OptionError(
                f"A policy is applied to this {type(attachment.model).__name__}: change its attention implementation "
                "after the `with` block."
            )
        self.__dict__[field_name] = value

    def reduce(self: Any, protocol: Any) -> Any:  # copies and pickles are plain configurations
        return _plain, (kind, dict(self.__dict__))

    members = {"__module__": kind.__module__, field_name: property(read, write), "__reduce_ex__": reduce}
    subclass: Any = type(kind)
    object.__setattr__(twin, "__class__", subclass(kind.__name__, (kind,), members))
    return twin


def _plain(kind: type, values: dict[str, Any]) -> Any:
    """A configuration of these values."""
    config: Any = object.__new__(kind)
    config.__dict__.update(values)
    return config


def _short_pass(model: PreTrainedModel, use_cache: bool) -> None:
    """Three tokens through the model, the first of them padding.

    Raises:
        OptionError: the model is refused, or fails.
    """
    ids = torch.zeros(1, 3, dtype=torch.long, device=model.device)
    mask = torch.tensor([[0, 1, 1]], device=model.device)
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=mask, use_cache=use_cache)
    except PlaitError:
        raise
    except Exception as error:  # whatever a model raises, it is a reason
        reason = f"{type(error).__name__}: {error}"
        raise _refusal(model, f"three tokens do not pass through it ({reason[:300]})") from error


@contextmanager
def _generator_kept(model: PreTrainedModel) -> Iterator[None]:
    """In training, dropout must not move the user's generators."""
    if not model.training:
        yield
        return
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def _refusal(model: nn.Module, reason: str) -> OptionError:
    return OptionError(
        f"{type(model).__name__} cannot run under a policy: {reason}. Policies serve decoders whose softmax layers "
        "attend causally through the attention interface of transformers, such as Llama, Qwen3, Gemma 3 or Qwen3-Next."
    )


def _refuse_structure(mask: Any, position_ids: Tensor | None, cached: bool) -> None:
    """Refuse masks and positions that mean something else than padding."""
    if isinstance(mask, dict) or (isinstance(mask, Tensor) and mask.dim() != 2):
        raise OptionError("A policy takes a padding mask (B, T) only: leave out the prepared attention_mask.")
    if mask is None and position_ids is not None and position_ids.dim() == 2 and position_ids.shape[1] > 1:
        steps = position_ids.diff(dim=1)
        if bool((steps != 1).any()):
            raise OptionError(
                "position_ids do not count up by one: packed documents are not supported under a policy. Pad the "
                "batch and pass an attention_mask instead."
            )

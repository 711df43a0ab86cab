"""Ties a policy to a decoder of transformers. Every private name of transformers that policies need is used here only.

One attention function and one mask function are registered, once, under one name. While a policy is applied, the
decoder and its attention modules hold a copy of their configuration that names them; the function finds the policy by
that copy, so models and nested policies do not meet.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from plait.errors import CacheError, OptionError
from plait.models.cache import CACHE_NAME
from plait.policies.cache import PolicyCache
from plait.policies.call import Forward, LayerInfo, ModelInfo, Scoring
from plait.policies.rope import Rope

if TYPE_CHECKING:
    from plait.policies.runtime import Applied

#: Name of the attention and mask functions in the registries of transformers.
NAME = "plait_policy"

#: Arguments of an attention function that stand for packed documents.
PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens")

_attached: dict[int, TransformersHooks] = {}


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The registered attention function."""
    hooks = _attached.get(id(module.config))
    if hooks is None:
        raise OptionError(
            f"{type(module).__name__} asks for the attention function {NAME!r}, but no policy is applied to its model: "
            "use `with plait.policy(model, ...)` and leave its attn_implementation alone."
        )
    return hooks.attend(module, query, key, value, *args, **kwargs), None


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


class TransformersHooks:
    """The hooks of one applied policy on one decoder.

    Args:
        applied: the policy.
        model: the decoder.
    """

    def __init__(self, applied: Applied, model: nn.Module) -> None:
        self.applied = applied
        self.model = model
        self.layers: dict[int, LayerInfo] = {}
        self.modules: dict[int, nn.Module] = {}
        self.forward: Forward | None = None
        self._seen = 0
        self._inputs: dict[int, tuple[Tensor | None, Any, PolicyCache | None]] = {}
        self._recording = False
        self._handles: list[RemovableHandle] = []
        self._restore: list[tuple[nn.Module, Any]] = []
        self._config: Any = None

    def attach(self) -> ModelInfo:
        """See :class:`~plait.policies.runtime.Hooks`.

        Raises:
            OptionError: the model is not supported.
        """
        model = _supported(self.model)
        config = model.config.get_text_config(decoder=True)
        self._config = copy.copy(config)
        self._config._attn_implementation_internal = NAME
        _attached[id(self._config)] = self
        try:
            for module in model.modules():
                if getattr(module, "config", None) is config:
                    self._restore.append((module, config))
                    module.config = self._config
            self._record(model)
            self._check_layers(config)
        except BaseException:
            self.detach()
            raise
        for module in model.modules():
            if isinstance(module, PreTrainedModel) and module.config is self._config:
                self._handles.append(module.register_forward_pre_hook(self._before_forward, with_kwargs=True))
        for module in self.modules.values():
            self._handles.append(module.register_forward_pre_hook(self._before_attention, with_kwargs=True))
        layers = tuple(self.layers[index] for index in sorted(self.layers))
        digest = hashlib.sha256(repr((type(model).__name__, layers)).encode()).hexdigest()[:16]
        return ModelInfo(type(model).__name__, layers, digest)

    def detach(self) -> None:
        """See :class:`~plait.policies.runtime.Hooks`."""
        for handle in self._handles:
            handle.remove()
        for module, config in self._restore:
            module.config = config
        _attached.pop(id(self._config), None)
        self._handles, self._restore, self.forward = [], [], None

    def _record(self, model: PreTrainedModel) -> None:
        """Two tokens through the model show which modules attend, and how."""
        self._recording = True
        ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):  # dropout must not move the user's generator
                model(input_ids=ids, use_cache=False)
        finally:
            self._recording = False

    def _check_layers(self, config: Any) -> None:
        name, depth = type(self.model).__name__, config.num_hidden_layers
        missing = sorted(set(range(depth)) - set(self.layers))
        if missing:
            raise _refusal(self.model, f"layers {missing} of {name} do not attend through the interface")
        for index, kind in enumerate(getattr(config, "layer_types", None) or ()):
            if kind not in ("full_attention", "sliding_attention"):
                raise _refusal(self.model, f"layer {index} is of type {kind!r}")
            if kind == "sliding_attention" and self.layers[index].window is None:
                raise _refusal(self.model, f"layer {index} slides but does not say how far")

    def _current(self) -> bool:
        """Whether no policy was nested inside this one."""
        module = next(iter(self.modules.values()), None)
        return module is not None and module.config is self._config

    def _before_forward(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Put the policy's cache under the decoder and begin a forward pass."""
        if not self._current():
            return None
        bound = inspect.signature(module.forward).bind_partial(*args, **kwargs)
        arguments = bound.arguments
        extra = arguments.get("kwargs", {})
        self.forward = None
        self._inputs.clear()
        names = [name for name in (CACHE_NAME, "past_key_values", "cache") if kwargs.get(name) is not None]
        name = names[0] if names else CACHE_NAME
        given = kwargs.get(name, arguments.get(CACHE_NAME))
        cache = self._cache_for(module, given, arguments.get("use_cache", extra.get("use_cache")))
        self._seen = 0 if cache is None else cache.slots
        mask = arguments.get("attention_mask")
        _refuse_structure(mask, arguments.get("position_ids"), given is not None)
        if cache is given:
            return None
        if CACHE_NAME in arguments and CACHE_NAME not in kwargs:
            raise CacheError(f"Pass {CACHE_NAME} by name, so that the policy can put its own cache there.")
        return args, {**kwargs, name: cache}

    def _cache_for(self, module: Any, given: Any, use_cache: bool | None) -> PolicyCache | None:
        if isinstance(given, PolicyCache):
            if given.owner is not self.applied:
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
            return self.new_cache()
        wanted = (module.config.use_cache and not module.training) if use_cache is None else use_cache
        return self.new_cache() if wanted else None

    def new_cache(self) -> PolicyCache:
        """An empty cache."""
        return PolicyCache((self.applied.new_state(self.layers[i]) for i in sorted(self.layers)), self.applied)

    def _before_attention(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Remember what the attention function is not told."""
        if not self._current():
            return
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        tables = kwargs.get("position_embeddings")
        cache = next((value for value in (*kwargs.values(), *args) if isinstance(value, Cache)), None)
        if cache is not None and not isinstance(cache, PolicyCache):
            raise CacheError(f"{type(module).__name__} was given a {type(cache).__name__}: leave out the cache.")
        self._inputs[id(module)] = (hidden, tables, cache)

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
        if self._recording:
            self._note(module, query, key, value, sliding_window, kwargs)
            return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
        if dropout:
            raise OptionError("A policy does not drop attention weights: call model.eval() or set attention_dropout=0.")
        for name in PACKED:
            if kwargs.get(name) is not None:
                raise OptionError(f"Packed documents ({name}) are not supported under a policy: pad the batch instead.")
        hidden, tables, cache = self._inputs.pop(id(module), (None, None, None))
        if self.forward is None:
            self.forward = self._begin(query, attention_mask, cache)
        layer = self.layers[module.layer_idx]
        o = self.applied.attend(
            layer,
            query,
            key,
            value,
            self.forward,
            Scoring(query.shape[-1] ** -0.5 if scaling is None else float(scaling), softcap, s_aux),
            None if cache is None else cache.layers[layer.index].state,
            hidden,
            Rope.of(module, tables, self.model),
        )
        return o.transpose(1, 2).contiguous()

    def _begin(self, query: Tensor, mask: Tensor | None, cache: PolicyCache | None) -> Forward:
        """Which of the new tokens are real and how many were before them in each row."""
        batch, length, device = query.shape[0], query.shape[2], query.device
        seen = 0 if cache is None else self._seen
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
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, window: int | None, kwargs: dict[str, Any]
    ) -> None:
        """Write down what an attention module is like, or refuse it."""
        if getattr(module, "layer_idx", None) is None:
            raise _refusal(self.model, f"{type(module).__name__} does not know its layer")
        if kwargs.get("position_bias") is not None:
            raise _refusal(self.model, f"{type(module).__name__} adds a position bias to its scores")
        if not getattr(module, "is_causal", True) or kwargs.get("is_causal") is False:
            raise _refusal(self.model, f"{type(module).__name__} is not causal")
        if module.layer_idx in self.layers:
            raise _refusal(self.model, f"layer {module.layer_idx} attends more than once")
        self.modules[module.layer_idx] = module
        self.layers[module.layer_idx] = LayerInfo(
            module.layer_idx, query.shape[1], key.shape[1], key.shape[-1], value.shape[-1], window
        )


def _supported(model: nn.Module) -> PreTrainedModel:
    """The model, if its class and configuration can carry a policy at all."""
    if not isinstance(model, PreTrainedModel):
        raise OptionError(f"A policy needs a decoder of transformers or of plait, not a {type(model).__name__}.")
    decoders = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    config = model.config.get_text_config(decoder=True)
    if model.config.is_encoder_decoder:
        raise _refusal(model, "it is an encoder-decoder")
    own = next((type(m).__name__ for m in decoders if not m._can_set_attn_implementation()), None)
    if own is not None:
        raise _refusal(model, f"{own} has its own attention code")
    if getattr(config, "num_kv_shared_layers", 0) or "reuse" in (getattr(config, "kv_sharing_modes", None) or ()):
        raise _refusal(model, "some of its layers reuse the keys of others")
    if not getattr(config, "is_causal", True):
        raise _refusal(model, "it is bidirectional")
    return model


def _refusal(model: nn.Module, reason: str) -> OptionError:
    return OptionError(
        f"{type(model).__name__} cannot run under a policy: {reason}. Policies serve decoders whose layers all attend "
        "causally through the attention interface of transformers, such as Llama, Qwen3, Gemma 3 or Mistral."
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

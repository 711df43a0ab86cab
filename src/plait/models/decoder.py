"""One decoder for every hybrid: the layer plan says which mixer stands in which block.

    embeddings -> blocks -> RMSNorm -> lm_head,   block: h = x + Mixer(RMS(x)); y = h + SwiGLU(RMS(h))

Layer types in ``post_norm`` have the norms behind: ``h = x + RMS(Mixer(x)); y = h + RMS(SwiGLU(h))``.

Parameter names follow flash-linear-attention: ``model.embeddings``, ``model.layers.N.{attn_norm,attn,mlp_norm,mlp}``,
``model.norm``, ``lm_head``.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from plait.errors import CacheError, OptionError
from plait.mixers.context import Context, Phase
from plait.models.cache import CACHE_NAME, PlaitCache, check_drafts
from plait.models.configuration import LayerSpec, PlaitConfig
from plait.models.loss import IGNORED, auxiliary_loss, cross_entropy, fits, shifted
from plait.models.outputs import PlaitCausalOutput, PlaitModelOutput
from plait.models.padding import Arrangement, arrange
from plait.models.pretrained import PlaitPreTrainedModel, SharedParameters
from plait.models.recomputation import reentrant, refuse_lost_gradients, refuse_lost_losses
from plait.models.sharded import count_targets, enter, place_following, sum_loss
from plait.nn import RMSNorm, SwiGLU


class Block(GradientCheckpointingLayer):
    """``h = x + Mixer(RMS(x)); y = h + SwiGLU(RMS(h))``, or, for a layer type in ``post_norm``, norms behind.

    Args:
        config: sizes.
        spec: the mixer of this layer.
        index: depth, from 0.
    """

    def __init__(self, config: PlaitConfig, spec: LayerSpec, index: int) -> None:
        super().__init__()
        self.layer_type = spec.name
        self.post_norm = spec.name in (config.post_norm or ())
        self.attn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attn = spec.type(config.dims, spec.options, index)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.mlp_size)

    def forward(self, x: Tensor, context: Context, shared: dict[str, Tensor]) -> Tensor:
        """``x`` ``(B, T, d)``; ``shared`` are the model-level parameters of this layer's type."""
        if context.before is not None:
            context = context.again()
        elif self.training:  # whoever checkpoints the block, this one or one that is wrapped around it
            context.before = dict(context.published)
        y = self._compute(x, context, shared)
        if self.training and reentrant(self):
            refuse_lost_gradients(context.published, self.attn.layer)
        return y

    def _compute(self, x: Tensor, context: Context, shared: dict[str, Tensor]) -> Tensor:
        if self.post_norm:
            x = x + self.attn_norm(self.mix(x, context, shared))
            return x + self.mlp_norm(self.mlp(x))
        x = x + self.mix(x, context, shared)
        return x + self.mlp(self.mlp_norm(x))

    def mix(self, x: Tensor, context: Context, shared: dict[str, Tensor]) -> Tensor:
        """What the mixer makes of the block's input ``x`` ``(B, T, d)``."""
        return self.attn(x if self.post_norm else self.attn_norm(x), replace(context, parameters=shared))


class PlaitModel(PlaitPreTrainedModel):
    """The decoder without its output head.

    Args:
        config: sizes, layer plan and mixer options.
    """

    def __init__(self, config: PlaitConfig) -> None:
        super().__init__(config)
        specs = config.layers()
        self.embeddings: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, spec, index) for index, spec in enumerate(specs))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        tables = {name: SharedParameters(config, spec) for name, spec in {spec.name: spec for spec in specs}.items()}
        self.shared = nn.ModuleDict({name: table for name, table in tables.items() if table()})
        self.gradient_checkpointing = False
        #: Where products of queries and keys are counted, see :func:`plait.models.count_pairs`.
        self.pairs: dict[int, int] | None = None
        self._empty = [block.attn.new_state() for block in self.layers]  # type: ignore[operator, union-attr]
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: PlaitCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cu_seqlens: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        cache: PlaitCache | None = None,
        **kwargs: Any,
    ) -> PlaitModelOutput | tuple:
        """Hidden states of a batch; for the arguments see :meth:`PlaitForCausalLM.forward`."""
        cu_seqlens = _check_other_arguments(kwargs, cu_seqlens)
        if (input_ids is None) == (inputs_embeds is None):
            raise OptionError("Give exactly one of input_ids and inputs_embeds.")
        x = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        batch, length = x.shape[:2]
        cache = _one_of(past_key_values, cache)
        given = {"attention_mask": attention_mask, "position_ids": position_ids, "cu_seqlens": cu_seqlens}
        shard = enter(self.config, x, **given, cache=cache, use_cache=use_cache)
        use_cache = use_cache if shard is None else False
        cache = self._cache(cache, use_cache)
        offset = 0 if shard is None else shard.offset
        layout = arrange(
            batch,
            length,
            x.device,
            **given,
            past_slots=offset if cache is None else cache.slots,
            past_padding=None if cache is None else cache.padding,
            cached=cache is not None,
        )
        if cache is None and use_cache is None and layout.cu_seqlens is None:
            cache = self._default_cache()
        context = Context(
            layout.index,
            layout.positions,
            layout.padding,
            layout.cu_seqlens,
            layout.seen,
            phase=self._phase(cache, length),
            pairs=self.pairs,
            sequence=shard,
            update_running_state=self.training,
        )
        x = layout.inward(x)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if self.config.output_attentions if output_attentions is None else output_attentions:
            context.attentions = []
        hidden_states = [layout.outward(x)] if output_hidden_states else []
        for index, block in enumerate(self.layers):
            layer, shared = None if cache is None else cache.layers[index], self.shared_by(block)
            if layer is not None and layer.records:
                run, read = partial(block, shared=shared), partial(block.mix, shared=shared)  # type: ignore
                x = layer.recorded(run, read, x, context)
            else:
                x = block(x, context.for_layer(None if layer is None else layer.state), shared)
            if output_hidden_states and index + 1 < len(self.layers):
                hidden_states.append(layout.outward(x))
        if (context.losses or context.attentions) and self.training and torch.is_grad_enabled():
            refuse_lost_losses(self.layers)
        weights = None if context.attentions is None else self._weights(context.attentions, layout)
        if cache is not None:
            cache.advance(length, layout.padding)
        x = layout.outward(self.norm(x))
        if output_hidden_states:
            hidden_states.append(x)
        output = PlaitModelOutput(
            last_hidden_state=x,
            hidden_states=tuple(hidden_states) or None,
            attentions=weights,
            losses=context.losses or None,
            weighted=context.weighted or None,
            cu_seqlens=layout.cu_seqlens,
            sequence=shard,
            **{CACHE_NAME: cache},  # type: ignore[arg-type]
        )
        return output if _wants_dict(return_dict, self.config) else output.to_tuple()

    def new_cache(self) -> PlaitCache:
        """An empty cache for this model."""
        return PlaitCache(self.config, [state.copy() for state in self._empty])

    @property
    def croppable(self) -> bool:
        """Whether a cache of this model can always forget its newest tokens."""
        return all(state.always_crops for state in self._empty)

    def shared_by(self, block: nn.Module) -> dict[str, Tensor]:
        """The model-level parameters that a block's mixer reads, by name."""
        name = block.layer_type
        return self.shared[name]() if name in self.shared else {}  # type: ignore[index, operator]

    def _weights(self, attentions: list[Tensor], layout: Arrangement) -> tuple[Tensor, ...]:
        """One ``(B, H, T, S)`` for each softmax layer, as the user's tokens stand."""
        expected = sum(block.attn.has_weights for block in self.layers)  # type: ignore[union-attr, misc]
        if len(attentions) != expected:
            raise OptionError(
                f"{len(attentions)} of {expected} softmax layers made attention weights: under a policy, with drafts "
                "or with rows shared by processes there are none. Leave out output_attentions, or use plait.probe."
            )
        return tuple(layout.matrix_outward(weights) for weights in attentions)

    def _cache(self, cache: PlaitCache | None, use_cache: bool | None) -> PlaitCache | None:
        """The cache that the caller gives or asks for."""
        if cache is not None and not isinstance(cache, PlaitCache):
            raise CacheError(
                f"past_key_values is a {type(cache).__name__}; this model needs PlaitCache(model.config), since its "
                "layers remember different things. If it comes from prefix tuning of PEFT, which makes keys and values "
                "for every layer: take prompt tuning or p-tuning, whose virtual tokens every mixer can read."
            )
        if cache is not None and use_cache is False:
            raise CacheError("past_key_values was given with use_cache=False: leave out one of them.")
        if cache is None and not use_cache:
            return None
        if self.training and torch.is_grad_enabled() and any(block.gradient_checkpointing for block in self.layers):
            raise CacheError(
                "Gradient checkpointing runs layers twice and would write the cache twice: pass use_cache=False, "
                "call model.eval(), or run under torch.no_grad()."
            )
        return self.new_cache() if cache is None else cache

    def _default_cache(self) -> PlaitCache | None:
        """A new cache where the caller says nothing: outside training, if the configuration wants one."""
        return self.new_cache() if self.config.use_cache and not self.training else None

    def _phase(self, cache: PlaitCache | None, length: int) -> Phase:
        if self.training:
            return "train"
        return "decode" if cache is not None and cache.slots and length == 1 else "prefill"


class PlaitForCausalLM(PlaitPreTrainedModel, GenerationMixin):
    """A hybrid language model.

    Args:
        config: sizes, layer plan and mixer options.

    Example:
        >>> import torch
        >>> from plait.models import PlaitConfig, PlaitForCausalLM
        >>> model = PlaitForCausalLM(PlaitConfig(layer_types=["gated_deltanet", "attention"], hidden_size=64))
        >>> model(torch.tensor([[1, 2, 3]])).logits.shape
        torch.Size([1, 3, 256])
    """

    _tied_weights_keys = {"lm_head.weight": "model.embeddings.weight"}  # noqa: RUF012
    accepts_loss_kwargs = True
    loss_type = "ForCausalLM"

    def __init__(self, config: PlaitConfig) -> None:
        super().__init__(config)
        self.model = PlaitModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _get_candidate_generator(self, generation_config: Any, *args: Any, **kwargs: Any) -> Any:
        check_drafts(self.config, generation_config.prompt_lookup_num_tokens)
        return super()._get_candidate_generator(generation_config, *args, **kwargs)  # type: ignore[misc]

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embeddings = value

    def get_output_embeddings(self) -> nn.Module:
        """The output head."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: PlaitCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        cu_seqlens: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        cache: PlaitCache | None = None,
        skip_logits: bool | None = None,
        **kwargs: Any,
    ) -> PlaitCausalOutput | tuple:
        """Logits, and the loss if there are labels.

        Args:
            input_ids: ``(B, T)``; or give ``inputs_embeds`` ``(B, T, d)``.
            attention_mask: ``(B, T)``, or ``(B, past + T)`` with a cache; 1, and 0 at padding, anywhere in the row. Or
                the number of each token's document in its row (1, 1, 2, 2), which sets borders as ``cu_seqlens`` does.
            position_ids: ``(B, T)``; not needed. A restart at 0 begins a new document, as from
                ``DataCollatorWithFlattening``; without restarts they may be shifted by a constant.
            past_key_values: cache of what came before; it is updated in place.
            labels: ``(B, T)``, compared with the logits one position earlier; -100 is not counted.
            use_cache: return a cache; by default ``config.use_cache`` outside training, unless there are targets.
            cu_seqlens: ``(N + 1,)`` borders of the documents packed into the rows laid end to end. State and
                positions restart at each border, and no token is predicted from another document.
            logits_to_keep: make logits for so many last positions only, or for the given positions; 0 for all.
            num_items_in_batch: divide the summed loss by this instead of by the targets in this call.
            output_hidden_states: return the input of every block and the normed output.
            output_attentions: return the weights of softmax layers; see ``attentions`` below.
            return_dict: False for a tuple.
            cache: what transformers calls ``past_key_values`` since 5.24; either name does, and the output has the
                name that the installed transformers uses.
            skip_logits: with targets, return no logits and never hold them all; None: do so in training where they
                would take more than ``loss.PLAIN_BYTES`` in fp32.
            kwargs: ``shift_labels`` ``(B, T)``, targets aligned with the inputs, in place of ``labels`` (by keyword,
                since transformers' Trainer takes every named argument with "label" for one that each batch has); and
                what transformers' collators call ``cu_seqlens``.

        Returns:
            ``loss``, ``logits`` ``(B, T, vocab)`` or None, the cache, ``hidden_states``, ``attentions``: where wanted,
            ``(B, H, T, S)`` for each layer of softmax attention, over the S tokens that it holds; linear ones have no
            entry. In training ``losses`` and ``aux_loss``, where mixers add to the loss.

        Raises:
            OptionError: arguments that do not fit together.
            CacheError: a cache of another model, or together with gradient checkpointing.
        """
        shift_labels: Tensor | None = kwargs.pop("shift_labels", None)
        with_loss = labels is not None or shift_labels is not None
        cache = _one_of(past_key_values, cache)
        if use_cache is None and with_loss and cache is None:
            use_cache = False
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            cu_seqlens=cu_seqlens,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            **kwargs,
        )
        hidden = output.last_hidden_state
        everything = isinstance(logits_to_keep, int) and logits_to_keep == 0
        if skip_logits is None:
            skip_logits = self.training and not fits(hidden[..., 0].numel(), self.config.vocab_size)
        logits = None
        if not (everything and with_loss and skip_logits):
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden if everything else hidden[:, kept])
        loss = auxiliary = None
        if with_loss:
            targets = self._targets(labels, shift_labels, hidden, output.cu_seqlens)
            shard = output.sequence
            if shard is not None and shift_labels is None:
                targets = place_following(shard, labels, targets)  # type: ignore[arg-type]
            if shard is not None and num_items_in_batch is None:
                num_items_in_batch = count_targets(shard, targets)
            loss = cross_entropy(
                self.lm_head,
                hidden,
                targets,
                vocab_size=self.config.vocab_size,
                count=num_items_in_batch,
                logits=logits if everything else None,
            )
            if shard is not None:
                loss = sum_loss(shard, loss, output.losses)
            auxiliary = auxiliary_loss(output.weighted, targets, num_items_in_batch)
            loss = loss if auxiliary is None else loss + auxiliary
        result = PlaitCausalOutput(
            loss=loss,
            losses=output.losses,
            aux_loss=auxiliary,
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            **{CACHE_NAME: getattr(output, CACHE_NAME)},
        )
        return result if _wants_dict(return_dict, self.config) else result.to_tuple()

    @staticmethod
    def _targets(
        labels: Tensor | None, shift_labels: Tensor | None, hidden: Tensor, cu_seqlens: Tensor | None
    ) -> Tensor:
        name, given = ("labels", labels) if shift_labels is None else ("shift_labels", shift_labels)
        assert given is not None
        if given.shape != hidden.shape[:2]:
            raise OptionError(
                f"{name} has shape {tuple(given.shape)} but the inputs are {tuple(hidden.shape[:2])}: give one target "
                f"per token, {IGNORED} where none counts."
            )
        given = given.to(hidden.device)
        return shifted(given, cu_seqlens) if shift_labels is None else given

    @property
    def _is_stateful(self) -> bool:  # type: ignore[override]
        """Whether drafts are refused: where states cannot be taken back and transformers cannot ask for a record."""
        return not (self.model.croppable or hasattr(Cache, "activate_past_recording"))

    def _assisted_decoding(self, *args: Any, **kwargs: Any) -> Any:
        cache = kwargs.get(CACHE_NAME)
        try:
            return super()._assisted_decoding(*args, **kwargs)  # type: ignore[misc]
        finally:
            if isinstance(cache, PlaitCache):
                cache.stop_recording()

    def _prepare_attention_mask_for_generation(
        self, inputs_tensor: Tensor, generation_config: Any, model_kwargs: dict[str, Any]
    ) -> Any:
        """As in transformers; but in a text that a draft goes on with, the padding token is a token as any other."""
        if generation_config.is_assistant:
            return torch.ones(inputs_tensor.shape[:2], dtype=torch.long, device=inputs_tensor.device)
        prepare: Any = super()._prepare_attention_mask_for_generation  # type: ignore[misc]
        return prepare(inputs_tensor, generation_config, model_kwargs)

    @wraps(GenerationMixin.prepare_inputs_for_generation)  # generate reads its signature
    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As in transformers, with the cache as ``past_key_values``: PEFT, which puts its prompts in front of an empty
        cache, looks for it under that name alone. The tokenizer is for ``stop_strings``, not for the model.
        """
        kwargs.pop("tokenizer", None)
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)
        inputs["past_key_values"] = inputs.pop(CACHE_NAME, None)
        return inputs

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise OptionError(
                f"cache_implementation={generation_config.cache_implementation!r} does not fit a hybrid model; leave "
                "it out, or pass past_key_values=PlaitCache(model.config)."
            )
        if model_kwargs.get(CACHE_NAME) is not None or generation_config.use_cache is False:
            prepare: Any = super()._prepare_cache_for_generation  # type: ignore[misc]
            return prepare(generation_config, model_kwargs, *args, **kwargs)
        model_kwargs[CACHE_NAME] = self.model.new_cache()
        if generation_config.is_assistant:
            model_kwargs[CACHE_NAME].activate_past_recording()
        return None

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: ``generate_batch`` and ``cache_implementation="paged"`` keep pages of keys and values alone.

        Raises:
            OptionError: always.
        """
        raise OptionError(
            "Continuous batching stores keys and values of attention only, and this model's layers remember other "
            "things too: call generate() with a batch of prompts, padded on the left."
        )


def _one_of(past_key_values: PlaitCache | None, cache: PlaitCache | None) -> PlaitCache | None:
    """The cache under whichever of its two names it was given."""
    if past_key_values is not None and cache is not None:
        raise OptionError("past_key_values and cache are the same thing: give one of them.")
    return past_key_values if cache is None else cache


def _wants_dict(return_dict: bool | None, config: PlaitConfig) -> bool:
    return bool(config.return_dict if return_dict is None else return_dict)


def _check_other_arguments(kwargs: dict[str, Any], cu_seqlens: Tensor | None) -> Tensor | None:
    """Borders under the names that transformers' collators use; any other argument is an error.

    ``max_length_*`` and ``seq_idx`` come from the same collators and say nothing more.
    """
    borders = kwargs.pop("cu_seq_lens_q", None)
    for name in ("cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"):
        kwargs.pop(name, None)
    for name, value in kwargs.items():
        if value is not None:
            raise OptionError(f"forward() has no argument {name!r}.")
    if cu_seqlens is not None and borders is not None:
        raise OptionError("cu_seqlens and cu_seq_lens_q are the same thing: give one of them.")
    return borders if cu_seqlens is None else cu_seqlens


__all__ = ["Block", "PlaitForCausalLM", "PlaitModel", "PlaitModelOutput"]

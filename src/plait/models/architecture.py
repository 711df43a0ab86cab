"""The model that a run file describes, and what it would cost; builds no tensor."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from plait import catalog
from plait.devices import memory_bytes
from plait.errors import OptionError, nearest
from plait.models.configuration import PlaitConfig
from plait.models.cost import count_parameters, plan_cost
from plait.models.plan import layer_plan
from plait.runs.config import RunConfig


def build_model_config(
    config: RunConfig, vocab_size: int, tokenizer: PreTrainedTokenizerBase | None = None, length: int | None = None
) -> PlaitConfig:
    """The model's configuration; builds no tensor.

    Args:
        config: the run.
        vocab_size: rows of the embedding.
        tokenizer: gives the ids of its special tokens.
        length: tokens of the longest row; None: the section's.

    Raises:
        OptionError: a ratio, layer type or option that does not fit; the message names it.
    """
    model = config.model
    plan = model.layer_types
    if plan is None:
        names = [*catalog.names("mixer"), *model.mixers]
        if model.mixer not in names:
            raise OptionError(f"model.mixer = {model.mixer!r} is not a mixer.{nearest(model.mixer, names)}")
        plan = layer_plan(model.mixer, model.ratio, model.num_hidden_layers, model.placement)
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    return PlaitConfig(
        vocab_size=vocab_size,
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_hidden_layers if model.layer_types is None else len(plan),
        layer_types=list(plan),
        mixers={name: dict(options) for name, options in model.mixers.items()},
        intermediate_size=model.intermediate_size,
        hidden_ratio=model.hidden_ratio,
        tie_word_embeddings=model.tie_word_embeddings,
        initialization=model.initialization or "plain",
        initializer_range=model.initializer_range,
        embedding_range=model.embedding_range,
        max_position_embeddings=length or config.data.length,
        **{key: getattr(tokenizer, key) for key in special if tokenizer is not None},
    )


def check_architecture(config: RunConfig) -> None:
    """Raise where the model of a run cannot be built, before its data is read; builds no tensor.

    Args:
        config: the run.

    Raises:
        OptionError: a ratio, layer type or option that does not fit; a model larger than this machine's memory; a
            context of ``evaluate.decode_contexts`` whose cache is.
    """
    model = build_model_config(config, vocab_size=256)
    memory = memory_bytes()
    width = model.hidden_size * (model.hidden_size + 3 * model.mlp_size) * len(model.layers())
    needed = 4 * (count_parameters(model) if width < memory else width)  # the sketch itself takes long where it is huge
    if needed > memory:
        raise OptionError(
            f"model: its weights take {needed / 2**30:,.0f} GiB, and this machine has {memory / 2**30:,.0f} GiB of "
            "memory; give a smaller hidden_size or num_hidden_layers."
        )
    for context in config.evaluate.decode_contexts:
        held = plan_cost(model, context).state_bytes
        if held > memory:
            raise OptionError(
                f"evaluate.decode_contexts: the cache of {context:,} tokens takes {held / 2**30:,.0f} GiB, and this "
                f"machine has {memory / 2**30:,.0f} GiB of memory; leave it out."
            )


@dataclass(frozen=True)
class Architecture:
    """The model of a run.

    Args:
        config: of the model.
    """

    config: PlaitConfig

    @classmethod
    def of(cls, run: RunConfig, vocab_size: int = 256) -> Architecture:
        """The architecture that a run file describes; the vocabulary matters for parameters only."""
        return cls(build_model_config(run, vocab_size))

    @property
    def layers(self) -> int:
        """Depth."""
        return len(self.config.layers())

    @property
    def full_layers(self) -> list[int]:
        """Indices of the full layers: those in which each token sees every earlier one exactly."""
        return [index for index, spec in enumerate(self.config.layers()) if spec.full]

    def cache_bytes(self, context: int) -> int:
        """Bytes that one sequence of ``context`` tokens holds while decoding, keys and values in bf16."""
        return plan_cost(self.config, context).state_bytes

    def mixing_flops(self, length: int) -> int:
        """Forward FLOPs of token mixing over one sequence, by the accounting of :class:`plait.mixers.base.Cost`."""
        return plan_cost(self.config, length).flops_prefill

    def parameters(self) -> int:
        """Of the whole model."""
        return count_parameters(self.config)

"""The model that a run file describes."""

from __future__ import annotations

import os

from transformers import PreTrainedTokenizerBase

from plait import catalog
from plait.errors import OptionError, nearest
from plait.models.configuration import PlaitConfig
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
    from plait.models.cost import count_parameters, plan_cost

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


def memory_bytes() -> int:
    """Memory of this machine, in bytes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return 2**50

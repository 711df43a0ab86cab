"""The model that a run file describes."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from plait import catalog
from plait.errors import OptionError, nearest
from plait.models.configuration import PlaitConfig
from plait.models.plan import layer_plan
from plait.training.config import RunConfig


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

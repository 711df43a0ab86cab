"""Fields of a ``config.json`` that another library wrote: each is read, known to change nothing, or refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from plait.errors import OptionError

#: What transformers writes into any file, and what it wrote in the past: names, outputs, defaults of generation.
OF_TRANSFORMERS = frozenset(
    """
    architectures attn_implementation auto_map dtype torch_dtype model_type transformers_version tokenizer_class
    prefix return_dict return_dict_in_generate output_hidden_states output_attentions output_scores use_return_dict
    name_or_path torchscript use_bfloat16 tf_legacy_loss id2label label2id num_labels problem_type finetuning_task
    task_specific_params chunk_size_feed_forward max_length min_length do_sample early_stopping num_beams
    num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences forced_bos_token_id
    forced_eos_token_id begin_suppress_tokens suppress_tokens remove_invalid_values exponential_decay_length_penalty
    decoder_start_token_id sep_token_id use_cache
    """.split()  # noqa: SIM905
)
#: Written by transformers too, and nothing that plait has where the value is another one.
_EMPTY: dict[str, tuple[Any, ...]] = {
    "is_decoder": (False, True),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
}


def refuse_unknown(values: Mapping[str, Any], known: Iterable[str], inside: str = "") -> None:
    """Raise where a field is neither read nor known to change nothing: it may change what the model computes.

    Args:
        values: the fields.
        known: those that are read, and those that change nothing, beside what transformers writes into any file.
        inside: what stands before a name in the message, such as ``attn.``.

    Raises:
        OptionError: names the fields with their values, and what to do.
    """
    for name, allowed in _EMPTY.items():
        if not inside and name in values and values[name] not in allowed:
            raise OptionError(
                f"{name}={_short(values[name])} cannot be expressed, only {' or '.join(map(repr, allowed))}."
            )
    known = {*known, *OF_TRANSFORMERS, *_EMPTY}
    unknown = [name for name in values if name not in known and not str(name).startswith("_")]
    if unknown:
        shown = ", ".join(f"{inside}{name}={_short(values[name])}" for name in unknown[:3])
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        this, it, does = ("this field", "it", "it does") if len(unknown) == 1 else ("these fields", "them", "they do")
        raise OptionError(
            f"{shown}{more}: plait does not know {this}, which may change what the model computes; take {it} out of "
            f"the file if {does} not."
        )


def sentence(error: BaseException) -> str:
    """What an exception says, on one line; the middle of a long one is left out."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = f"{type(error).__name__} {text}" if isinstance(error, KeyError) else text
    return text if len(text) <= 600 else f"{text[:300]} ... {text[-300:]}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

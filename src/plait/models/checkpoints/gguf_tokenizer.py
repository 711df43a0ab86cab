"""A tokenizer as llama.cpp reads it: byte-level BPE whose way of splitting text it knows by name."""

from __future__ import annotations

import json
from typing import Any

from plait.errors import OptionError


def _pattern(numbers: str) -> str:
    """The pattern of Qwen 2 and of Llama 3, which differ in how many digits stay together."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + numbers
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


#: How a text is split before merges, by llama.cpp's name of it; None is the pattern of GPT-2 inside ``ByteLevel``.
_SPLITS: dict[str | None, str] = {
    None: "gpt-2",
    _pattern(r"\p{N}"): "qwen2",
    _pattern(r"\p{N}{1,3}"): "llama-bpe",
}
#: llama.cpp wants merges, and a tokenizer of bytes has none: this pair of bytes stands in no UTF-8 text.
_NEVER = chr(0xC0)


def add_tokenizer(gguf: Any, writer: Any, tokenizer: Any | None, vocab_size: int) -> None:
    """Write the entries of ``tokenizer.ggml``.

    Args:
        gguf: the package.
        writer: its writer.
        tokenizer: of transformers, with a ``backend_tokenizer``; None: the file has none.
        vocab_size: rows of the model's embedding; ids without an entry become unused tokens.

    Raises:
        OptionError: llama.cpp has no name for this tokenizer.
    """
    if tokenizer is None:
        writer.add_tokenizer_model("none")
        return
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise _refused(f"it is a {type(tokenizer).__name__} without a tokenizer.json")
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    model = described["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise _refused(f"its model is {model['type']}{' with byte fallback' if model.get('byte_fallback') else ''}")
    split = _split(described, bool(model["merges"]))
    if bool(model.get("ignore_merges")) != (split == "llama-bpe"):
        raise _refused(f"ignore_merges={model.get('ignore_merges')} does not go with {split}")
    if (described.get("normalizer") or {"type": "NFC"})["type"] != "NFC":
        raise _refused(f"it normalises text with {described['normalizer']['type']}")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    tokens, types = _entries(gguf, tokenizer, vocab_size)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    writer.add_token_merges(merges or [f"{_NEVER} {_NEVER}"])
    for name in ("bos", "eos", "pad", "unk"):
        token_id = getattr(tokenizer, f"{name}_token_id", None)
        if token_id is not None:
            getattr(writer, f"add_{name}_token_id")(token_id)
    opening = tokenizer("")["input_ids"]
    writer.add_add_bos_token(bool(opening) and opening[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(False)
    if isinstance(getattr(tokenizer, "chat_template", None), str):
        writer.add_chat_template(tokenizer.chat_template)


def _split(described: dict[str, Any], merges: bool) -> str:
    """llama.cpp's name for the way in which a text is split."""
    steps = described.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    patterns = [step.get("pattern", {}).get("Regex", "") for step in steps if step.get("type") == "Split"]
    levels = [step for step in steps if step.get("type") == "ByteLevel"]
    if len(levels) != 1 or levels[0].get("add_prefix_space") or len(patterns) + 1 != len(steps):
        raise _refused(f"it splits text with {' and '.join(str(step.get('type')) for step in steps)}")
    if not merges:  # where nothing is merged, it does not matter where the text is split
        return "gpt-2"
    pattern = patterns[0] if patterns else None
    if len(patterns) > 1 or pattern not in _SPLITS or (pattern is None) != bool(levels[0].get("use_regex", True)):
        raise _refused(f"its pattern of splitting is {str(patterns or None)[:80]}")
    return _SPLITS[pattern]


def _entries(gguf: Any, tokenizer: Any, vocab_size: int) -> tuple[list[str], list[Any]]:
    """Each id's token, and whether it is an ordinary, a control or an unused one."""
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    if by_id and max(by_id) >= vocab_size:
        raise _refused(f"its largest id is {max(by_id)}, and the model has {vocab_size} rows")
    added = tokenizer.added_tokens_decoder
    kinds = gguf.TokenType
    tokens, types = [], []
    for index in range(vocab_size):
        tokens.append(by_id.get(index, f"[PAD{index}]"))
        if index not in by_id:
            types.append(kinds.UNUSED)
        elif index in added:
            types.append(kinds.CONTROL if added[index].special else kinds.USER_DEFINED)
        else:
            types.append(kinds.NORMAL)
    return tokens, types


def _refused(reason: str) -> OptionError:
    return OptionError(
        f"llama.cpp has no name for this tokenizer: {reason}. Take a byte-level BPE as plait trains it, or export "
        "from a folder without a tokenizer: the file then takes token ids only."
    )

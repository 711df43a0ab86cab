"""From text to ids: bytes, byte-level BPE trained on the corpus, or the tokenizer of another model.

All three are tokenizers of transformers: saved beside a model, ``AutoTokenizer.from_pretrained`` loads them where plait
is not installed.
"""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from plait.data.chat import ChatText
from plait.data.corpus import Corpus, Document
from plait.data.folders import only_writer, write_folder
from plait.data.order import stable_hash
from plait.errors import DataError, OptionError, nearest
from plait.files.manifest import fault, seal
from plait.models.tokenizer import open_tokenizer

_log = logging.getLogger("plait")

EOS = "<|endoftext|>"
PAD = "<|pad|>"
_SMALLEST_BPE = 256 + 2 + 1  # bytes, EOS and PAD, one merge


def build_tokenizer(spec: str, corpus: Corpus | None, max_bytes: int | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer that ``spec`` names.

    Args:
        spec: ``bytes`` (id = byte, then eos 256 and pad 257), ``bpe:SIZE`` (byte-level BPE with ``SIZE`` entries, eos
            and pad among them, trained on the corpus' training split) or ``hf:NAME_OR_PATH``.
        corpus: what BPE is trained on; the others do not use it.
        max_bytes: train BPE on the first so many bytes of the training split.

    Raises:
        OptionError: a spec of another form or a size out of range.
        DataError: a tokenizer that cannot be loaded, or a corpus too small for ``SIZE`` entries.
    """
    kind, _, rest = spec.partition(":")
    if spec == "bytes":
        return byte_tokenizer()
    if kind == "bpe" and rest:
        if not rest.isdecimal() or int(rest) < _SMALLEST_BPE:
            raise OptionError(f"Tokenizer {spec!r}: SIZE is a whole number of at least {_SMALLEST_BPE}.")
        if corpus is None:
            raise OptionError(f"Tokenizer {spec!r} is trained on a corpus, and there is none.")
        return _train_bpe(int(rest), corpus, max_bytes)
    if kind == "hf" and rest:
        return _load(rest)
    raise OptionError(f"There is no tokenizer {spec!r}.{nearest(spec, ['bytes', 'bpe:SIZE', 'hf:NAME_OR_PATH'])}")


def cached_tokenizer(spec: str, corpus: Corpus, folder: Path, max_bytes: int | None = None) -> PreTrainedTokenizerFast:
    """:func:`build_tokenizer`, with a trained one kept in ``folder`` and reused for the same corpus."""
    if not spec.startswith("bpe:"):
        return build_tokenizer(spec, corpus, max_bytes)
    key = stable_hash(spec, corpus.spec, corpus.fingerprint(), max_bytes)
    path = folder / f"tokenizer-{key:016x}"
    if not _whole(path):
        with only_writer(path):
            if not _whole(path):  # another process may have written it while this one waited
                tokenizer = build_tokenizer(spec, corpus, max_bytes)
                shutil.rmtree(path, ignore_errors=True)
                write_folder(path, lambda temporary: _save(tokenizer, temporary))
    return _load(str(path))


def _save(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    seal(folder)


def _whole(path: Path) -> bool:
    """Whether a trained tokenizer is there as it was saved; a damaged one is trained again, with a warning."""
    wrong = fault(path) if path.is_dir() else None
    if wrong is not None:
        _log.warning("The tokenizer in %s is damaged: %s. Training it again.", path, wrong)
    return path.is_dir() and wrong is None


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte: ids 0 to 255 are the bytes, 256 ends a text, 257 pads."""
    letters = _byte_letters()
    tokenizer = Tokenizer(models.BPE(vocab={letter: byte for byte, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _wrap(tokenizer)


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[npt.NDArray[np.int64]]:
    """Ids of each text, without special tokens: a text that spells ``<|endoftext|>`` gets its letters.

    A :class:`~plait.data.chat.ChatText` keeps those that its template wrote.

    Byte tokenizers are read straight from the UTF-8 bytes, hundreds of times faster than through the library.
    """
    if _is_bytes(tokenizer):
        return [np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64) for text in texts]
    plain = [text for text in texts if not isinstance(text, ChatText)]
    chats = [text for text in texts if isinstance(text, ChatText)]
    options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    found = iter(tokenizer(plain, split_special_tokens=True, **options)["input_ids"] if plain else [])
    written = iter(tokenizer(chats, split_special_tokens=False, **options)["input_ids"] if chats else [])
    return [np.asarray(next(written if isinstance(text, ChatText) else found), dtype=np.int64) for text in texts]


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """The bytes of text that each id stands for; special tokens stand for none.

    Exact for byte-level vocabularies, plait's own among them. For others it is what the tokenizer decodes, which may
    leave out the blank before a word.
    """
    special = set(tokenizer.all_special_ids)
    names = tokenizer.convert_ids_to_tokens(list(range(vocabulary_size(tokenizer))))
    byte_of = {letter: byte for byte, letter in enumerate(_byte_letters())}
    decoder = tokenizer.backend_tokenizer.decoder if isinstance(tokenizer, PreTrainedTokenizerFast) else None
    added = set(tokenizer.added_tokens_decoder)
    table = []
    for index, name in enumerate(names):
        if index in special or name is None:
            table.append(b"")
        elif index in added:
            table.append(name.encode("utf-8"))
        elif isinstance(decoder, decoders.ByteLevel):
            table.append(bytes(byte_of[letter] for letter in name))
        else:
            table.append(tokenizer.convert_tokens_to_string([name]).encode("utf-8"))
    return table


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows that an embedding needs: one more than the largest id."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1)


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Changes when the tokenizer would give other ids."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        text = tokenizer.backend_tokenizer.to_str()
    else:
        text = repr(sorted(tokenizer.get_vocab().items()))
    return f"{stable_hash(type(tokenizer).__name__, text, tokenizer.eos_token_id):016x}"


def limited(documents: Iterator[Document], max_bytes: int | None) -> Iterator[Document]:
    """Documents up to ``max_bytes`` of UTF-8 in all; the last is cut between two characters."""
    left = max_bytes
    for document in documents:
        if left is not None:
            content = document.text.encode("utf-8")
            if len(content) >= left:
                yield Document(document.name, content[:left].decode("utf-8", "ignore"))
                return
            left -= len(content)
        yield document


def _train_bpe(size: int, corpus: Corpus, max_bytes: int | None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for _, text in limited(corpus.documents("train"), max_bytes)), trainer)
    if tokenizer.get_vocab_size() < size:
        raise DataError(
            f"The training split of {corpus.spec!r} gives a BPE of only {tokenizer.get_vocab_size()} entries, not "
            f"{size}; use a smaller SIZE, tokenizer bytes, or more text."
        )
    return _wrap(tokenizer)


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def _load(name: str) -> PreTrainedTokenizerFast:
    tokenizer = open_tokenizer(name)
    if tokenizer.eos_token_id is None:
        raise DataError(f"Tokenizer 'hf:{name}' has no eos token, which ends each document; choose another.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return cast(PreTrainedTokenizerFast, tokenizer)


@functools.cache
def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte in byte-level vocabularies (GPT-2's table)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _is_bytes(tokenizer: PreTrainedTokenizerBase) -> bool:
    vocabulary = tokenizer.get_vocab()
    return len(vocabulary) == 258 and all(vocabulary.get(letter) == byte for byte, letter in enumerate(_byte_letters()))

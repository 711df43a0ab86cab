"""Documents as one memory-mapped file of tokens, and windows of it in an order that only the seed decides."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from plait.data.corpus import Corpus, Document, checked_split
from plait.data.folders import only_writer, write_folder
from plait.data.order import Permutation, stable_hash
from plait.data.tokenizers import encode, limited, tokenizer_hash, vocabulary_size
from plait.errors import DataError, OptionError

IGNORED = -100
_VERSION = 1
_TOKENS, _STARTS, _MANIFEST = "tokens.bin", "documents.bin", "manifest.json"
_BATCH_CHARACTERS = 4_000_000
_log = logging.getLogger("plait")


class Manifest(BaseModel):
    """What a packed folder holds.

    Args:
        version: of this format.
        corpus, fingerprint, split, max_bytes: where the text came from.
        tokenizer: hash of the tokenizer.
        vocab_size: one more than the largest id.
        dtype: ``uint16`` or ``uint32``.
        documents: number of texts; each ends with the tokenizer's eos.
        empty_documents: texts without a character, left out.
        tokens: number of tokens, eos included.
        bytes: UTF-8 bytes of the texts.
        sha256: of each file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int
    corpus: str
    fingerprint: str
    split: str
    max_bytes: int | None
    tokenizer: str
    vocab_size: int
    dtype: Literal["uint16", "uint32"]
    documents: int
    empty_documents: int
    tokens: int
    bytes: int
    sha256: dict[str, str]


class PackedTokens:
    """The tokens of one split, memory-mapped.

    Attributes:
        tokens: ``(N,)`` of uint16 or uint32.
        document_starts: ``(documents,)`` int64, index of each document's first token.
        manifest: where they come from.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.tokens: npt.NDArray[Any] = np.memmap(folder / _TOKENS, dtype=manifest.dtype, mode="r")
        self.document_starts: npt.NDArray[np.int64] = np.memmap(folder / _STARTS, dtype="<i8", mode="r")

    @classmethod
    def open(cls, folder: Path, verify: bool = True) -> PackedTokens:
        """Open a packed folder.

        Args:
            folder: the folder.
            verify: compare the files' hashes with the manifest, else their sizes only.

        Raises:
            DataError: a file is missing or damaged.
        """
        try:
            manifest = Manifest.model_validate_json((folder / _MANIFEST).read_bytes())
        except (OSError, ValidationError) as error:
            raise DataError(f"{folder / _MANIFEST} is missing or damaged; delete {folder} to pack again.") from error
        sizes = {_TOKENS: manifest.tokens * np.dtype(manifest.dtype).itemsize, _STARTS: manifest.documents * 8}
        for name, size in sizes.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != size:
                raise DataError(f"{path} is missing or has the wrong size; delete {folder} to pack again.")
            if verify and _sha256(path) != manifest.sha256[name]:
                raise DataError(
                    f"{path} is damaged (its hash differs from the manifest); delete {folder} to pack again."
                )
        return cls(folder, manifest)

    def __reduce__(self) -> tuple[Any, ...]:  # a data-loader process maps the file again instead of copying it
        return PackedTokens.open, (self.folder, False)

    def __len__(self) -> int:
        return self.manifest.tokens

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token, eos counted as a token: bits per byte = loss / ln 2 / this."""
        return self.manifest.bytes / self.manifest.tokens


def pack(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    split: str,
    max_bytes: int | None = None,
) -> PackedTokens:
    """Tokens of a split, from ``folder`` if they were packed before, else packed now.

    They lie in a folder of their own whose name holds a hash of corpus, tokenizer and limits, so settings never mix;
    it appears only when complete. A damaged one is packed again, with a warning.

    Args:
        corpus: the text.
        tokenizer: must have an eos token, which is appended to each document.
        folder: where packed folders are kept.
        split: ``train``, ``validation`` or ``test``.
        max_bytes: stop after so many bytes of text.

    Raises:
        DataError: text that cannot be read, or a split without text.
    """
    if tokenizer.eos_token_id is None:
        raise DataError("The tokenizer has no eos token, which ends each document; choose another.")
    vocab_size = vocabulary_size(tokenizer)
    source = {
        "version": _VERSION,
        "corpus": corpus.spec,
        "fingerprint": corpus.fingerprint(),
        "split": checked_split(split),
        "max_bytes": max_bytes,
        "tokenizer": tokenizer_hash(tokenizer),
        "vocab_size": vocab_size,
        "dtype": "uint16" if vocab_size <= 1 << 16 else "uint32",
    }
    path = Path(folder) / f"{split}-{stable_hash(json.dumps(source, sort_keys=True)):016x}"
    packed = _packed_before(path, source)
    if packed is not None:
        return packed
    with only_writer(path):
        packed = _packed_before(path, source)  # by another process, while this one waited
        if packed is not None:
            return packed
        shutil.rmtree(path, ignore_errors=True)
        documents = limited(corpus.documents(split), max_bytes)
        write_folder(path, lambda temporary: _write(temporary, documents, tokenizer, source))
    return PackedTokens.open(path, verify=False)


def _packed_before(path: Path, source: dict[str, Any]) -> PackedTokens | None:
    """The tokens in a folder, None where there are none; damaged ones are none, with a warning."""
    if not path.exists():
        return None
    try:
        packed = PackedTokens.open(path)
    except DataError as error:
        _log.warning("%s Packing again.", error)
        return None
    if source.items() <= packed.manifest.model_dump().items():
        return packed
    _log.warning("%s holds other tokens than its name says; packing again.", path)
    return None


class TokenDataset(Dataset[dict[str, Tensor]]):
    """Windows of ``length`` tokens and their next tokens; row ``i`` depends on ``(seed, i)`` and the tokens alone.

    The tokens are cut into windows that do not overlap, starting from an offset below ``length``; the rows of an epoch
    visit all windows once in pseudo-random order, and every epoch has another offset and another order. A run
    continued at row ``i`` therefore sees what an uninterrupted one would have seen, and nothing needs to be stored.

    Args:
        packed: the tokens.
        length: tokens per row, T.
        samples: number of rows; may exceed the number of windows.
        seed: of offsets and orders.
        documents: ``join``: windows run across documents. ``separate``: rows also hold ``document_starts`` (places in
            the row where a document starts, 0 always among them), and an eos does not predict the next document.

    Raises:
        DataError: fewer than ``length + 1`` tokens.
    """

    def __init__(
        self,
        packed: PackedTokens,
        length: int,
        samples: int,
        seed: int,
        documents: Literal["join", "separate"] = "join",
    ) -> None:
        if length < 1 or samples < 1:
            raise OptionError(f"length={length} and samples={samples} must be at least 1.")
        if documents not in ("join", "separate"):
            raise OptionError(f"documents={documents!r}: write 'join' or 'separate'.")
        if len(packed) < length + 1:
            manifest = packed.manifest
            raise DataError(
                f"The {manifest.split} split of {manifest.corpus!r} has {len(packed)} tokens, fewer than one window of "
                f"length {length} and its target; use a shorter length or more text."
            )
        self.packed = packed
        self.length = length
        self.samples = samples
        self.seed = seed
        self.documents = documents
        self.windows = window_count(len(packed), length)
        self._offsets = min(length, len(packed) - self.windows * length)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        """``input_ids`` ``(T,)`` and ``targets`` ``(T,)``, int64; target of position t at t, -100 ignored."""
        if not 0 <= i < self.samples:
            raise IndexError(f"row {i} of {self.samples}")
        begin = self.begin(i)
        tokens = torch.from_numpy(self.packed.tokens[begin : begin + self.length + 1].astype(np.int64))
        row = {"input_ids": tokens[:-1], "targets": tokens[1:]}
        if self.documents == "separate":
            starts = self.packed.document_starts
            first, last = np.searchsorted(starts, [begin + 1, begin + self.length + 1])
            inside = torch.from_numpy(starts[first:last] - begin)  # in 1..T; T is the target of the last position
            row["targets"] = row["targets"].clone()
            row["targets"][inside - 1] = IGNORED
            row["document_starts"] = torch.cat([torch.zeros(1, dtype=torch.int64), inside[inside < self.length]])
        return row

    def begin(self, i: int) -> int:
        """Index of the first token of row ``i``."""
        epoch, place = divmod(i, self.windows)
        offset = stable_hash("offset", self.seed, epoch) % self._offsets
        return offset + Permutation(self.windows, stable_hash("order", self.seed, epoch))(place) * self.length


def window_count(tokens: int, length: int) -> int:
    """Windows of one epoch: as many as fit from any offset below ``length``, at least one."""
    return max(1, (tokens - length) // length)


def collate(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch of rows.

    Rows of one length are stacked to ``(B, T)``. Shorter rows are filled on the right with id 0 and ignored targets,
    which a causal model's other outputs cannot see. Rows with ``document_starts`` are laid behind each other in
    one row ``(1, B T)`` with ``cu_seqlens`` ``(N + 1,)`` int64, the borders of all N documents.
    """
    if "document_starts" in rows[0]:
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        ends = lengths.cumsum(0)
        borders = [row["document_starts"] + start for row, start in zip(rows, ends - lengths, strict=True)]
        return {
            "input_ids": torch.cat([row["input_ids"] for row in rows])[None],
            "targets": torch.cat([row["targets"] for row in rows])[None],
            "cu_seqlens": torch.cat([*borders, ends[-1:]]),
        }
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad([row["input_ids"] for row in rows], batch_first=True, padding_value=0),
        "targets": pad([row["targets"] for row in rows], batch_first=True, padding_value=IGNORED),
    }


def _write(
    folder: Path, documents: Iterator[Document], tokenizer: PreTrainedTokenizerBase, source: dict[str, Any]
) -> None:
    eos = tokenizer.eos_token_id
    starts = array("q")
    tokens = size = empty = 0
    with (folder / _TOKENS).open("wb") as file:
        for texts in _batches(documents):
            full = [text for text in texts if text]
            empty += len(texts) - len(full)
            for text, ids in zip(full, encode(tokenizer, full), strict=True):
                starts.append(tokens)
                file.write(np.append(ids, eos).astype(source["dtype"]).tobytes())
                tokens += len(ids) + 1
                size += len(text.encode("utf-8"))
    if not starts:
        raise DataError(
            f"The {source['split']} split of {source['corpus']!r} has no text ({empty} empty documents); "
            "give more text: at least 3 files, 20 rows, or a longer file."
        )
    np.asarray(starts, dtype="<i8").tofile(folder / _STARTS)
    manifest = Manifest(
        **source,
        documents=len(starts),
        empty_documents=empty,
        tokens=tokens,
        bytes=size,
        sha256={name: _sha256(folder / name) for name in (_TOKENS, _STARTS)},
    )
    (folder / _MANIFEST).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")


def _batches(documents: Iterator[Document]) -> Iterator[list[str]]:
    """Texts in lists of a few million characters, since tokenizers work on many texts in parallel."""
    texts: list[str] = []
    characters = 0
    for document in documents:
        texts.append(document.text)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS:
            yield texts
            texts, characters = [], 0
    yield texts


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

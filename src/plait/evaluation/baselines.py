"""What compressors and counts make of the text that a model is measured on: has a small model learnt anything?"""

from __future__ import annotations

import gzip
import json
import lzma
from dataclasses import dataclass
from typing import Any

import numpy as np

from plait.data import TextData
from plait.data.byte_ngrams import ByteNgrams, choose_length
from plait.data.order import stable_hash
from plait.data.packing import IGNORED, TokenDataset
from plait.data.tokenizers import limited, token_bytes
from plait.files.writing import read_back, write_json

#: Bytes of the training split whose n-grams are counted.
COUNTED = 1 << 23
_VERSION = 1


@dataclass(frozen=True)
class Windows:
    """The bytes that a model was measured on.

    Args:
        texts: the bytes of each window, in the order of the text, the first token among them, which is only read.
        scored: for each byte of all windows whether it is predicted.
    """

    texts: list[bytes]
    scored: np.ndarray

    @property
    def predicted(self) -> bytes:
        """The bytes that count."""
        data = np.frombuffer(b"".join(self.texts), np.uint8)
        return data[self.scored].tobytes()


def text_baselines(data: TextData, dataset: TokenDataset) -> dict[str, Any]:
    """Bits per byte of gzip, xz and a byte n-gram on the very bytes that a model is measured on.

    The compressors see these bytes alone, with their headers. The n-grams are counted on the training split (its first
    8 MiB), whose last tenth chooses their length; like the model, they see nothing before a window. Kept in the data's
    folder, so that the trials of a study compute it once.

    Args:
        data: the text.
        dataset: the rows that the model is measured on.

    Returns:
        ``bytes``, ``gzip`` and ``xz`` (bits per byte), and ``ngram``: ``bits_per_byte``, ``length`` and
        ``train_bytes``, or None where the training split has no text.
    """
    manifest = dataset.packed.manifest.model_dump(exclude={"sha256"})
    measured = {**manifest, "length": dataset.length, "rows": len(dataset), "documents_apart": dataset.documents}
    key = stable_hash(json.dumps(measured, sort_keys=True), COUNTED, _VERSION)
    path = data.folder / f"baselines-{key:016x}.json"
    if path.exists():
        kept: dict[str, Any] = read_back(path)
        return kept
    windows = measured_windows(data, dataset)
    result = {**compressed(windows.predicted), "ngram": _ngram(data, windows)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    return result


def compressed(text: bytes) -> dict[str, Any]:
    """Size in ``bytes``, and bits per byte of ``gzip`` and ``xz`` at their strongest, headers included."""
    size = len(text)
    return {
        "bytes": size,
        "gzip": 8 * len(gzip.compress(text, 9, mtime=0)) / size,
        "xz": 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / size,
    }


def measured_windows(data: TextData, dataset: TokenDataset) -> Windows:
    """The bytes of the rows of a data set, in the order of the text."""
    table = token_bytes(data.tokenizer)
    texts, scored = [], []
    for row in sorted(range(len(dataset)), key=dataset.begin):
        item = dataset[row]
        begin = dataset.begin(row)
        ids = dataset.packed.tokens[begin : begin + dataset.length + 1].tolist()
        counted = [False, *(item["targets"] != IGNORED).tolist()]
        parts = [table[index] for index in ids]
        texts.append(b"".join(parts))
        scored += [one for one, part in zip(counted, parts, strict=True) for _ in part]
    return Windows(texts, np.asarray(scored, bool))


def _ngram(data: TextData, windows: Windows) -> dict[str, Any] | None:
    most = min(COUNTED, data.data.max_bytes or COUNTED)
    text = b"".join(document.text.encode("utf-8") for document in limited(data.corpus.documents("train"), most))
    if not text:
        return None
    length = choose_length(text)
    bits = ByteNgrams(text, length).bits(windows.texts)[-1]
    value = float(bits[windows.scored].mean())
    return {"bits_per_byte": value, "length": length, "train_bytes": len(text)}

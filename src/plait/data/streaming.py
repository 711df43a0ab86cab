"""Text of the hub that is read and tokenised while it is learnt; its rows are the same in every process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from plait.data.hub import HubCorpus
from plait.data.order import Permutation, stable_hash
from plait.data.packing import IGNORED
from plait.data.tokenizers import encode
from plait.errors import DataError

#: Rows of the data set that are read at a time, and shuffled.
BLOCK = 256
#: Rows behind the last one from which a position can still be taken without reading from the start.
LOOKBACK = 4096


@dataclass(frozen=True)
class Place:
    """Where a block of the stream begins.

    Args:
        row: the first row of tokens that ends in it.
        epoch: how often the data set was read to its end.
        index: rows of the data set read before, in this epoch.
        reader: state of the data set's reader; None at the start.
        left: tokens of the block before that fill no row.
    """

    row: int = 0
    epoch: int = 0
    index: int = 0
    reader: Mapping[str, Any] | None = None
    left: tuple[int, ...] = ()


class StreamedTokens(Dataset[dict[str, Tensor]]):
    """Windows of ``length`` tokens of a streamed corpus; row ``i`` depends on the seed, ``i`` and the corpus alone.

    Blocks of 256 rows of the data set are shuffled, tokenised and cut into windows that run on from block to block;
    at its end the data set is read again in another order. Rows are cheap in increasing order; an earlier one is found
    by reading on from the last known place before it, at worst from the start. Each process reads the whole stream
    and keeps the rows that it is asked for.

    Args:
        corpus: the text.
        tokenizer: its eos is appended to each document.
        length: tokens per row, T.
        samples: number of rows.
        seed: of the order inside the blocks.
        documents: as for :class:`plait.data.packing.TokenDataset`.
    """

    def __init__(
        self,
        corpus: HubCorpus,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        samples: int,
        seed: int,
        documents: Literal["join", "separate"] = "join",
    ) -> None:
        self.corpus = corpus
        self.tokenizer = tokenizer
        self.length = length
        self.samples = samples
        self.seed = seed
        self.documents = documents
        self._places: list[Place] = []
        self._next = 0
        self._windows: Iterator[npt.NDArray[np.int64]] = iter(())
        self._begin(Place())

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        """A row as :class:`plait.data.packing.TokenDataset` gives it."""
        if not 0 <= i < self.samples:
            raise IndexError(f"row {i} of {self.samples}")
        if i < self._next:
            self._begin(self._place_before(i))
        window = next(islice(self._windows, i - self._next, None))
        self._next = i + 1
        tokens = torch.from_numpy(window)
        row = {"input_ids": tokens[:-1], "targets": tokens[1:]}
        if self.documents == "separate":
            ends = (row["input_ids"] == self.tokenizer.eos_token_id).nonzero()[:, 0]
            row["targets"] = row["targets"].clone()
            row["targets"][ends] = IGNORED
            row["document_starts"] = torch.cat([torch.zeros(1, dtype=torch.int64), ends[ends + 1 < self.length] + 1])
        return row

    def position(self, row: int) -> dict[str, Any]:
        """From where to read on at ``row``, for :meth:`restore`; ready for JSON."""
        return asdict(self._place_before(row))

    def restore(self, position: Mapping[str, Any]) -> None:
        """Read on from a :meth:`position` of the same corpus, length and seed, instead of from the start."""
        self._begin(Place(**{**position, "left": tuple(position["left"])}))

    def _place_before(self, row: int) -> Place:
        return next((place for place in reversed(self._places) if place.row <= row), Place())

    def _begin(self, place: Place) -> None:
        self._places = [known for known in self._places if known.row < place.row]
        self._next = place.row
        self._windows = self._read(place)

    def _read(self, place: Place) -> Iterator[npt.NDArray[np.int64]]:
        """Windows from the first row of a place on, without end."""
        while True:
            found = place.index > 0  # only a whole epoch can tell that there is none
            rows, source = self.corpus.rows("train")
            if place.reader is not None:
                rows.load_state_dict(place.reader)
            reader = self.corpus.read(rows, source)
            while True:
                self._remember(place)
                texts, count = [], 0
                for row in islice(reader, BLOCK):
                    text = self.corpus.text("train", source, place.index + count, row)
                    count += 1
                    if text:
                        texts.append(text)
                if not count:
                    break
                found = found or bool(texts)
                tokens = self._tokens(texts, place)
                windows = max(0, (len(tokens) - 1) // self.length)
                for window in range(windows):
                    yield tokens[window * self.length : (window + 1) * self.length + 1]
                left = tuple(tokens[windows * self.length :].tolist())
                place = Place(place.row + windows, place.epoch, place.index + count, rows.state_dict(), left)
            if not found:
                raise DataError(f"The training split of {self.corpus.spec!r} has no text to stream.")
            place = Place(place.row, place.epoch + 1, 0, None, place.left)

    def _tokens(self, texts: list[str], place: Place) -> npt.NDArray[np.int64]:
        """What the block before left, then the block's texts in their order, each with its eos."""
        pieces = [np.array(place.left, np.int64)]
        if texts:
            order = Permutation(len(texts), stable_hash("stream", self.seed, place.epoch, place.index))
            for ids in encode(self.tokenizer, [texts[order(i)] for i in range(len(texts))]):
                pieces += [ids, np.array([self.tokenizer.eos_token_id], np.int64)]
        return np.concatenate(pieces)

    def _remember(self, place: Place) -> None:
        self._places.append(place)
        while len(self._places) > 1 and self._places[1].row < place.row - LOOKBACK:
            self._places.pop(0)

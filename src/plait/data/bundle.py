"""Everything that a training run or an evaluation needs of its data, from the ``data`` section of a run file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch.utils.data import ConcatDataset, Dataset
from transformers import PreTrainedTokenizerFast

from plait.data.bigrams import BigramCounts
from plait.data.chat import ChatTemplate
from plait.data.corpora import open_corpus
from plait.data.corpus import Corpus
from plait.data.hub import HubCorpus
from plait.data.mixture import GROUP, MixtureDataset, check_shares, choose
from plait.data.order import stable_hash
from plait.data.packing import PackedTokens, TokenDataset, collate, pack, window_count
from plait.data.streaming import StreamedTokens
from plait.data.tasks import Task, TaskDataset, build_task
from plait.data.tokenizers import cached_tokenizer, vocabulary_size

if TYPE_CHECKING:  # training stands beside data: only the type is used here
    from plait.runs.config import DataSection, PartSection


class DataBundle(ABC):
    """Data of one run.

    Training rows depend on the run's seed. Held-out rows do not, so that runs with different seeds are measured on
    the same ones.

    Attributes:
        vocab_size: one more than the largest id.
        length: tokens of the longest row.
        tokenizer: None for a synthetic task.
        collate: makes a batch from rows.
    """

    vocab_size: int
    length: int
    tokenizer: PreTrainedTokenizerFast | None = None
    collate = staticmethod(collate)
    HELD_OUT_SEED: ClassVar[int] = 0

    @abstractmethod
    def train_dataset(self, samples: int, seed_offset: int = 0) -> Dataset[Any]:
        """``samples`` rows of the training split; another ``seed_offset`` gives other rows."""

    @abstractmethod
    def held_out_dataset(self, split: str, samples: int) -> Dataset[Any]:
        """At most ``samples`` rows of ``validation`` or ``test``, no text twice; the same for every seed."""

    def validation_dataset(self, samples: int) -> Dataset[Any]:
        """See :meth:`held_out_dataset`."""
        return self.held_out_dataset("validation", samples)

    def test_dataset(self, samples: int) -> Dataset[Any]:
        """See :meth:`held_out_dataset`."""
        return self.held_out_dataset("test", samples)


class TextData(DataBundle):
    """A corpus, its tokenizer and its packed splits; the held-out ones are packed at once, training text when used.

    Args:
        data: the section.
        folder: where tokens and a trained tokenizer are kept; runs may share it.
        seed: of the training rows.
        tokenizer: that of a trained model; None builds what the section says.
    """

    tokenizer: PreTrainedTokenizerFast

    def __init__(
        self, data: DataSection, folder: Path, seed: int, tokenizer: PreTrainedTokenizerFast | None = None
    ) -> None:
        self.data = data
        self.folder = folder
        self.seed = seed
        self.length = data.length
        self.corpus: Corpus = open_corpus(data.corpus or "", data.field)
        self.tokenizer = tokenizer or cached_tokenizer(data.tokenizer, self.corpus, folder, data.max_bytes)
        if self.tokenizer.chat_template:
            self.corpus.chat = ChatTemplate(self.tokenizer)
        self.vocab_size = vocabulary_size(self.tokenizer)
        self._packed: dict[str, PackedTokens] = {}
        self._bigrams: BigramCounts | None = None
        for split in ("validation", "test"):  # a corpus that is too small fails here, not after training
            self.held_out_dataset(split, 1)

    def packed(self, split: str) -> PackedTokens:
        """The tokens of a split."""
        if split not in self._packed:
            self._packed[split] = pack(self.corpus, self.tokenizer, self.folder, split, self.data.max_bytes)
        return self._packed[split]

    def bytes_per_token(self, split: str = "validation") -> float:
        """UTF-8 bytes of text per token: bits per byte = loss / ln 2 / this."""
        return self.packed(split).bytes_per_token

    def bigram_counts(self) -> BigramCounts:
        """How often each bigram occurs in the training split; computed when first asked for."""
        if self._bigrams is None:
            self._bigrams = BigramCounts(self.packed("train").tokens, self.vocab_size)
        return self._bigrams

    def train_dataset(self, samples: int, seed_offset: int = 0) -> TokenDataset | StreamedTokens:
        seed = _training_seed(self.seed, seed_offset)
        if self.data.streaming:
            assert isinstance(self.corpus, HubCorpus)  # the section has been checked
            return StreamedTokens(self.corpus, self.tokenizer, self.length, samples, seed, self.data.documents)
        return TokenDataset(self.packed("train"), self.length, samples, seed, self.data.documents)

    def held_out_dataset(self, split: str, samples: int) -> TokenDataset:
        packed = self.packed(split)
        samples = min(samples, window_count(len(packed), self.length))
        return TokenDataset(packed, self.length, samples, self.HELD_OUT_SEED, self.data.documents)


class TaskData(DataBundle):
    """A synthetic task.

    Args:
        task: what is generated.
        seed: of the training rows.
    """

    def __init__(self, task: Task, seed: int) -> None:
        self.task = task
        self.seed = seed
        self.vocab_size = task.vocab_size
        self.length = task.longest

    def train_dataset(self, samples: int, seed_offset: int = 0) -> TaskDataset:
        return TaskDataset(self.task, samples, _training_seed(self.seed, seed_offset), "train")

    def held_out_dataset(self, split: str, samples: int) -> TaskDataset:
        return TaskDataset(self.task, samples, self.HELD_OUT_SEED, split)


class MixtureData(DataBundle):
    """Several sources, learnt together or one after the other.

    Args:
        parts: the sources.
        shares: of each its weight, and the fractions of the training at which it starts and ends.
        seed: of the training rows.

    Raises:
        DataError: a moment at which no part is active.
    """

    def __init__(
        self, parts: Sequence[TextData | TaskData], shares: Sequence[tuple[float, float, float]], seed: int
    ) -> None:
        check_shares(shares)
        self.parts = parts
        self.shares = shares
        self.seed = seed
        self.vocab_size = max(part.vocab_size for part in parts)
        self.length = max(part.length for part in parts)
        self.tokenizer = next((part.tokenizer for part in parts if part.tokenizer is not None), None)

    def train_dataset(self, samples: int, seed_offset: int = 0) -> MixtureDataset:
        choices = choose(self.shares, samples, _training_seed(self.seed, seed_offset), "train")
        rows = np.bincount(choices, minlength=len(self.parts)) * GROUP
        parts = [
            part.train_dataset(max(int(count), 1), stable_hash(seed_offset, index))
            for index, (part, count) in enumerate(zip(self.parts, rows, strict=True))
        ]
        return MixtureDataset(parts, choices, samples)

    def held_out_dataset(self, split: str, samples: int) -> ConcatDataset[Any]:
        """``samples`` rows over the parts that are active at the end, each its share; a text may have fewer."""
        last = {index: weight for index, (weight, _, end) in enumerate(self.shares) if end == 1}
        total = sum(last.values())
        counts = {index: max(1, round(samples * weight / total)) for index, weight in last.items()}
        return ConcatDataset([self.parts[index].held_out_dataset(split, count) for index, count in counts.items()])


def build(
    data: DataSection, folder: Path, seed: int, tokenizer: PreTrainedTokenizerFast | None = None
) -> TextData | TaskData | MixtureData:
    """The data of a run.

    Args:
        data: the section of the run file. For a task, ``length`` holds unless the options name another or a
            preset.
        folder: where tokens and a trained tokenizer are kept; runs may share it.
        seed: of the training rows; held-out rows are the same for every seed.
        tokenizer: that of a trained model, instead of the section's.

    Raises:
        OptionError: a name or option that does not exist.
        DataError: text that cannot be read, or is too little for one window in a split.
    """
    if data.mixture:
        parts = [_part(data, part, Path(folder), seed, tokenizer) for part in data.mixture]
        return MixtureData(parts, [(part.weight, part.start, part.end) for part in data.mixture], seed)
    return _source(data, Path(folder), seed, tokenizer)


def _part(
    data: DataSection, part: PartSection, folder: Path, seed: int, tokenizer: PreTrainedTokenizerFast | None
) -> TextData | TaskData:
    own = part.model_dump(exclude={"weight", "start", "end"}, exclude_none=True)
    return _source(data.model_copy(update={"mixture": [], **own}), folder, seed, tokenizer)


def _source(
    data: DataSection, folder: Path, seed: int, tokenizer: PreTrainedTokenizerFast | None
) -> TextData | TaskData:
    if data.task is None:
        return TextData(data, folder, seed, tokenizer)
    options = dict(data.options)
    if not options.keys() & {"mixture", "preset"}:
        options.setdefault("length", data.length)
    return TaskData(build_task(data.task, options), seed)


def _training_seed(seed: int, offset: int) -> int:
    return stable_hash(seed, offset) if offset else seed

"""Text as a measurement: bits per byte, and the loss of all tokens, of AR hits and of the others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from plait.data import TextData
from plait.data.corpora import open_corpus
from plait.data.tokenizers import encode
from plait.errors import DataError, OptionError
from plait.evaluation.baselines import compressed, text_baselines
from plait.evaluation.batching import Batches
from plait.evaluation.language import Losses, document_losses, loss_by_context, packed_losses, perplexities
from plait.evaluation.measurement import Advance, Measurement
from plait.evaluation.results import digest
from plait.evaluation.score import SAMPLES, Score
from plait.evaluation.subject import Subject
from plait.files import read_text

#: Characters of one piece, which is one sample, and how many pieces are read where no limit is given.
PIECE, PIECES = 8192, 16

#: Metrics of a text.
BITS, LOSS, AR_LOSS, OTHER_LOSS = "bits per byte", "loss", "loss on AR hits", "loss on other tokens"

_GROUPS = {"all": LOSS, "ar_hits": AR_LOSS, "other": OTHER_LOSS}


def text_scores(
    losses: Losses, sizes: Sequence[float], more: Mapping[str, Any], *, split_ar_hits: bool = True
) -> list[Score]:
    """What the losses of some samples of text say: bits per byte, and nats per token of each group that has tokens.

    Args:
        losses: of the samples.
        sizes: bytes of each.
        more: further numbers, for the bits per byte; all scores take the digest of the samples from it.
        split_ar_hits: also give AR hits and the other tokens.
    """
    same = {SAMPLES: more[SAMPLES]}
    tokens = int(losses.tokens["all"].sum())
    scores = [Score.ratio(BITS, (losses.sums["all"] / math.log(2)).tolist(), sizes, unit=BITS, more=more)]
    for group, metric in _GROUPS.items():
        count = int(losses.tokens[group].sum())
        if count and (split_ar_hits or group == "all"):
            facts = {"tokens": count, "share": count / tokens, **same}
            scores.append(
                Score.ratio(
                    metric,
                    losses.sums[group].tolist(),
                    losses.tokens[group].tolist(),
                    unit="nats per token",
                    more=facts,
                )
            )
    return scores


@dataclass(frozen=True)
class HeldOutText(Measurement):
    """The loss on the held-out text of a corpus, packed into rows as in training; each row is a sample.

    ``more`` of the bits per byte holds ``baselines`` (:func:`~plait.evaluation.baselines.text_baselines`).

    Args:
        data: the corpus; its test split is read.
        rows: at most so many.
        split_ar_hits: also give the loss on AR hits and on the other tokens.
        rare_below: count a bigram as an AR hit only if it is rarer than this in the training split.
        baselines: set compressors and a byte n-gram beside it.
    """

    data: TextData
    rows: int
    split_ar_hits: bool = True
    rare_below: int | None = None
    baselines: bool = True
    kind = "text"
    unit = "rows"

    @property
    def name(self) -> str:
        return f"text {self.data.data.corpus} length={self.data.length}"

    @property
    def samples(self) -> int:
        return len(self.data.held_out_dataset("test", self.rows))

    @property
    def settings(self) -> dict[str, Any]:
        data = self.data.data
        return {
            "text": data.corpus,
            "length": self.data.length,
            "rows": self.rows,
            "documents": data.documents,
            "max_bytes": data.max_bytes,
            "ar_hits": self.split_ar_hits,
            "rare_below": self.rare_below,
        }

    def check(self, subject: Subject) -> None:
        _check_text(subject)
        if self.data.vocab_size > subject.vocab_size:
            raise OptionError(
                f"The tokenizer has ids up to {self.data.vocab_size - 1} but the model knows {subject.vocab_size} "
                "tokens; use the tokenizer that the model was trained with."
            )

    def scores(self, subject: Subject, batches: Batches, advance: Advance) -> list[Score]:
        dataset = self.data.held_out_dataset("test", self.rows)
        advance(0, len(dataset))
        losses = packed_losses(
            subject.model,
            dataset,
            batch_size=batches.rows(self.data.length),
            vocab_size=subject.vocab_size,
            counts=self.data.bigram_counts() if self.split_ar_hits and self.rare_below else None,
            rare_below=self.rare_below,
            advance=advance,
        )
        manifest = dataset.packed.manifest
        more: dict[str, Any] = {SAMPLES: digest([*manifest.sha256.values(), str(dataset.length), str(len(dataset))])}
        if self.baselines:
            more["baselines"] = text_baselines(self.data, dataset)
        sizes = (losses.tokens["all"] * self.data.bytes_per_token("test")).tolist()
        return text_scores(losses, sizes, more, split_ar_hits=self.split_ar_hits)


@dataclass(frozen=True)
class TextMeasurement(Measurement):
    """The loss on a text in pieces of 8,192 characters, each read from its start; with a limit, in single windows.

    ``more`` of the bits per byte holds ``perplexity`` (:func:`~plait.evaluation.language.perplexities`), ``by_context``
    (:func:`~plait.evaluation.language.loss_by_context`) and ``baselines``
    (:func:`~plait.evaluation.baselines.compressed`), each of all that was read.

    Args:
        source: path of a text file, or ``python-stdlib`` for its test split.
        length: tokens of a window.
        windows: read only so many windows, each a sample of its own; None: 16 pieces, or the whole of a shorter text.
    """

    source: str
    length: int
    windows: int | None = None
    kind = "text"
    unit = "windows"

    @property
    def name(self) -> str:
        return f"text {Path(self.source).name} length={self.length}"

    @property
    def samples(self) -> int:
        return self.windows or PIECES

    @property
    def settings(self) -> dict[str, Any]:
        most = {"samples": PIECES} if self.windows is None else {"windows": self.windows}
        return {"text": Path(self.source).name, "length": self.length, **most}

    def check(self, subject: Subject) -> None:
        _check_text(subject)
        next(self._pieces())

    def pieces(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """The pieces that are read, in order; the last one may be short.

        Args:
            tokenizer: counts the tokens of windows.

        Raises:
            DataError: the file cannot be read or is empty.
        """
        if self.windows is None:
            return [piece for _, piece in zip(range(PIECES), self._pieces(), strict=False)]
        windows: list[str] = []
        for piece in self._pieces():
            while piece and len(windows) < self.windows:
                windows.append(prefix(tokenizer, piece, self.length))
                piece = piece[len(windows[-1]) :]
            if len(windows) == self.windows:
                break
        return [window for window in windows if window.strip()]

    def _pieces(self) -> Iterator[str]:
        if self.source == "python-stdlib":
            texts: Iterator[str] = (document.text for document in open_corpus(self.source, "text").documents("test"))
        else:
            texts = iter([read_text(Path(self.source))])
        rest, any_text = "", False
        for text in texts:
            rest += text
            while len(rest) >= PIECE:
                piece, rest = rest[:PIECE], rest[PIECE:]
                if piece.strip():
                    any_text = True
                    yield piece
        if rest.strip():
            yield rest
        elif not any_text:
            raise DataError(f"{self.source} holds no text.")

    def scores(self, subject: Subject, batches: Batches, advance: Advance) -> list[Score]:
        tokenizer = subject.tokenizer
        assert tokenizer is not None
        pieces, rows = self.pieces(tokenizer), batches.rows(self.length)
        whole = "".join(pieces)
        tokens = len(encode(tokenizer, [whole])[0])
        advance(0, _windows(tokenizer, pieces, self.length) + (tokens - 1) // self.length)
        losses = document_losses(subject.model, tokenizer, pieces, length=self.length, batch_size=rows, advance=advance)
        by_context: list[dict[str, Any]] = []
        if tokens > self.length:
            by_context = loss_by_context(
                subject.model, tokenizer, [whole], length=self.length, batch_size=rows, advance=advance
            )
        more = {
            "perplexity": perplexities(losses, pieces),
            "by_context": by_context,
            "baselines": compressed(whole.encode("utf-8")),
            SAMPLES: digest(pieces),
        }
        return text_scores(losses, [len(piece.encode("utf-8")) for piece in pieces], more)


def prefix(tokenizer: PreTrainedTokenizerBase, text: str, tokens: int) -> str:
    """The longest beginning of a text that has at most so many tokens."""
    if len(encode(tokenizer, [text])[0]) <= tokens:
        return text
    fits, breaks = 1, len(text)  # characters
    while breaks - fits > 1:
        middle = (fits + breaks) // 2
        if len(encode(tokenizer, [text[:middle]])[0]) <= tokens:
            fits = middle
        else:
            breaks = middle
    return text[:fits]


def _windows(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str], length: int) -> int:
    return sum(-(-len(ids) // length) for ids in encode(tokenizer, pieces))


def _check_text(subject: Subject) -> None:
    """Raise where a model has no tokenizer, or its loss on a text would mean something else than it says."""
    if subject.tokenizer is None:
        raise OptionError(f"{subject.name} has no tokenizer, so it cannot be measured on text.")
    policy = subject.policy
    if policy is not None and policy.looks_ahead:
        raise OptionError(
            f"{subject.name}: the policy chooses keys by looking at later tokens of the same text, so the loss on a "
            "text would profit from what it must predict. Measure tasks and benchmarks."
        )
    if policy is not None and "prefill" not in policy.reduces:
        raise OptionError(
            f"{subject.name}: the policy acts while decoding, and a text is read in one pass, where it changes "
            "nothing. Measure tasks and benchmarks."
        )

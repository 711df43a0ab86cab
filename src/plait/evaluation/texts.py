"""Perplexity of a text file, or of the Python standard library, as one measurement."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from plait.data.corpora import open_corpus
from plait.data.tokenizers import encode
from plait.errors import DataError, OptionError
from plait.evaluation.baselines import compressed
from plait.evaluation.batching import Batches
from plait.evaluation.language import loss_by_context, text_perplexity
from plait.evaluation.measurements import Advance, Measurement, Score
from plait.evaluation.results import SAMPLES, digest
from plait.evaluation.subject import Subject
from plait.files import read_text
from plait.runtime.policy import Policy

#: Characters of one piece, which is one sample, and how many pieces are read where no limit is given.
PIECE, PIECES = 8192, 16


@dataclass(frozen=True)
class TextMeasurement(Measurement):
    """Bits per byte of a text in pieces of 8,192 characters, each read from its start; with a limit, in single windows.

    Further numbers: ``perplexity`` (:func:`~plait.evaluation.language.text_perplexity` of all pieces),
    ``by_context`` (:func:`~plait.evaluation.language.loss_by_context`) and ``baselines``
    (:func:`~plait.evaluation.baselines.compressed` of all pieces).

    Args:
        source: path of a text file, or ``python-stdlib`` for its test split.
        length: tokens of a window.
        windows: read only so many windows, each a sample of its own; None: 16 pieces, or the whole of a shorter text.
    """

    source: str
    length: int
    windows: int | None = None
    unit = "windows"

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"text {Path(self.source).name} length={self.length}"

    @property
    def samples(self) -> int:  # type: ignore[override]
        return self.windows or PIECES

    @property
    def spec(self) -> dict[str, Any]:
        most = {"samples": PIECES} if self.windows is None else {"windows": self.windows}
        return {"text": Path(self.source).name, "length": self.length, **most}

    def check(self, subject: Subject) -> None:
        if subject.tokenizer is None:
            raise OptionError(f"{subject.name} has no tokenizer, so it cannot be measured on text.")
        if subject.policy is not None:
            _refuse_policy(subject.name, subject.policy)
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
        found: list[str] = []
        for piece in self._pieces():
            while piece and len(found) < self.windows:
                found.append(prefix(tokenizer, piece, self.length))
                piece = piece[len(found[-1]) :]
            if len(found) == self.windows:
                break
        return [window for window in found if window.strip()]

    def _pieces(self) -> Iterator[str]:
        if self.source == "python-stdlib":
            texts: Iterator[str] = (document.text for document in open_corpus(self.source, "text").documents("test"))
        else:
            texts = iter([read_text(Path(self.source))])
        rest, found = "", False
        for text in texts:
            rest += text
            while len(rest) >= PIECE:
                piece, rest = rest[:PIECE], rest[PIECE:]
                if piece.strip():
                    found = True
                    yield piece
        if rest.strip():
            yield rest
        elif not found:
            raise DataError(f"{self.source} holds no text.")

    def run(self, subject: Subject, batches: Batches, advance: Advance) -> Score:
        tokenizer = subject.tokenizer
        assert tokenizer is not None
        pieces, rows = self.pieces(tokenizer), batches.rows(self.length)
        whole = "".join(pieces)
        tokens = len(encode(tokenizer, [whole])[0])
        advance(0, _windows(tokenizer, pieces, self.length) + (tokens - 1) // self.length)
        found = [
            text_perplexity(subject.model, tokenizer, [piece], length=self.length, batch_size=rows, advance=advance)
            for piece in pieces
        ]
        by_context: list[dict[str, Any]] = []
        if tokens > self.length:
            by_context = loss_by_context(
                subject.model, tokenizer, [whole], length=self.length, batch_size=rows, advance=advance
            )
        more = {
            "perplexity": together(found),
            "by_context": by_context,
            "baselines": compressed("".join(pieces).encode("utf-8")),
            SAMPLES: digest(pieces),
        }
        return Score.of("bits per byte", [one["bits_per_byte"] for one in found], more=more)


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


def together(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What :func:`~plait.evaluation.language.text_perplexity` says of all texts, from what it says of each."""
    tokens, words, size = (sum(part[name] for part in parts) for name in ("tokens", "words", "bytes"))
    total = math.fsum(part["loss"] * part["tokens"] for part in parts)
    groups = {}
    for name in ("ar_hits", "other"):
        count = sum(part[name]["tokens"] for part in parts)
        sums = math.fsum(part[name]["loss"] * part[name]["tokens"] for part in parts if part[name]["tokens"])
        groups[name] = {"loss": sums / count if count else None, "share": count / tokens, "tokens": count}
    return {
        "loss": total / tokens,
        "token_perplexity": math.exp(total / tokens),
        "word_perplexity": math.exp(total / words),
        "bits_per_byte": total / math.log(2) / size,
        "tokens": tokens,
        "words": words,
        "bytes": size,
        **groups,
    }


def _refuse_policy(name: str, policy: Policy) -> None:
    """Raise where the loss on a text under this policy would mean something else than it says."""
    if policy.looks_ahead:
        raise OptionError(
            f"{name}: the policy chooses keys by looking at later tokens of the same text, so the loss on a text would "
            "profit from what it must predict. Measure tasks and benchmarks."
        )
    if "prefill" not in policy.reduces:
        raise OptionError(
            f"{name}: the policy acts while decoding, and a text is read in one pass, where it changes nothing. "
            "Measure tasks and benchmarks."
        )

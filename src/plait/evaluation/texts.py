"""Perplexity of a text file, or of the Python standard library, as one measurement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.data.corpora import open_corpus
from plait.errors import DataError, OptionError
from plait.evaluation.batching import Batches
from plait.evaluation.language import loss_by_context, text_perplexity
from plait.evaluation.measurements import Advance, Measurement, Score
from plait.evaluation.subject import Subject
from plait.policies.base import Policy

#: Characters of one piece, which is one sample.
PIECE = 8192


@dataclass(frozen=True)
class TextMeasurement(Measurement):
    """Bits per byte of a text in pieces of 8,192 characters, each read from its start.

    Further numbers: ``perplexity`` (:func:`~plait.evaluation.language.text_perplexity` of all pieces) and
    ``by_context`` (:func:`~plait.evaluation.language.loss_by_context`).

    Args:
        source: path of a text file, or ``python-stdlib`` for its test split.
        length: tokens of a window.
        samples: pieces.
    """

    source: str
    length: int
    samples: int

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"text {Path(self.source).name} length={self.length}"

    @property
    def spec(self) -> dict[str, Any]:
        return {"text": Path(self.source).name, "length": self.length, "samples": self.samples}

    def check(self, subject: Subject) -> None:
        if subject.tokenizer is None:
            raise OptionError(f"{subject.name} has no tokenizer, so it cannot be measured on text.")
        if subject.policy is not None:
            _refuse_policy(subject.name, subject.policy)
        self.pieces()

    def pieces(self) -> list[str]:
        """The first ``samples`` pieces of the text; the last one may be short.

        Raises:
            DataError: the file cannot be read or is empty.
        """
        if self.source == "python-stdlib":
            text = ""
            for document in open_corpus(self.source, "text").documents("test"):
                text += document.text
                if len(text) >= PIECE * self.samples:
                    break
        else:
            try:
                text = Path(self.source).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{self.source} cannot be read as UTF-8 text: {error}.") from None
        pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)][: self.samples]
        pieces = [piece for piece in pieces if piece.strip()]
        if not pieces:
            raise DataError(f"{self.source} holds no text.")
        return pieces

    def run(self, subject: Subject, batches: Batches, advance: Advance) -> Score:
        assert subject.tokenizer is not None
        pieces, rows = self.pieces(), batches.rows(self.length)
        values = []
        for piece in pieces:
            found = text_perplexity(subject.model, subject.tokenizer, [piece], length=self.length, batch_size=rows)
            values.append(found["bits_per_byte"])
            advance(1)
        more = {
            "perplexity": text_perplexity(
                subject.model, subject.tokenizer, pieces, length=self.length, batch_size=rows
            ),
            "by_context": loss_by_context(
                subject.model, subject.tokenizer, ["".join(pieces)], length=self.length, batch_size=rows
            ),
        }
        return Score.of("bits per byte", values, more=more)


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

"""Rows that DuoAttention's gates are trained on: something is hidden far back, and asked for at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from plait.data.tasks.base import IGNORED, Task
from plait.data.tokenizers import encode
from plait.errors import DataError
from plait.files.reading import read_text
from plait.runtime.policy import CalibrationRow

#: The passkeys' words, and the sentences around them (spelling included) of the paper's data.
# fmt: off
WORDS = (
    "alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india",
    "juliett", "kilo", "lima", "mike", "november", "oscar", "papa", "quebec", "romeo",
    "sierra", "tango", "uniform", "victor", "whiskey", "xray", "yankee", "zulu",
)
# fmt: on
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
OPENING = "<|im_start|> This is a very long story book: <book> "
CLOSING = " </book>.\n\n"
NEEDLE = "Remeber this sequence of words, it's the {} passkey to the vault: "
QUESTION = "Based on the content of the book, what is the {} passkey to the vault?\nPasskey: "
SEPARATOR = "\n\n"
#: Depths at which passkeys stand, as shares of the haystack.
DEPTHS = np.linspace(0.05, 0.95, 1000)
#: Rows have a multiple of so many tokens.
MULTIPLE = 16
#: Rows of a task that are made at once.
_ROWS = 32


def task_rows(task: Task, seed: int = 0) -> Iterator[CalibrationRow]:
    """Rows of a task of token ids without end; labelled where the next token is an answer.

    Args:
        task: such as ``niah`` with several queries.
        seed: of the rows.
    """
    rng = np.random.default_rng([seed, 0x64756F])
    while True:
        ids, targets = task.generate(rng, _ROWS)
        for row, target in zip(ids, targets, strict=True):
            yield CalibrationRow(torch.from_numpy(row).long(), torch.from_numpy(target != IGNORED))


def passkey_rows(
    tokenizer: PreTrainedTokenizerBase,
    haystack: str | Path,
    *,
    shortest: int = 1000,
    longest: int = 32_000,
    lengths: int = 50,
    passkeys: int = 10,
    words: int = 32,
    seed: int = 0,
) -> Iterator[CalibrationRow]:
    """Multi-passkey retrieval without end (2410.10819, section 2.2): passkeys of many words in a long text, all asked.

    Labelled are the questions and their answers, separators included. A row has ``length // 16 * 16`` tokens in all,
    where the authors add the questions to a haystack of ``length``; they use BookSum.

    Args:
        tokenizer: of the model.
        haystack: text file; repeated if it is short.
        shortest, longest, lengths: of a row in tokens: drawn from so many, evenly spaced.
        passkeys: in a row, at most ten.
        words: of a passkey.
        seed: of lengths, depths and passkeys.

    Raises:
        DataError: a file without text, or a row that is too short for its passkeys.
    """
    if not 1 <= passkeys <= len(ORDINALS):
        raise DataError(f"passkey_rows: passkeys={passkeys} must lie between 1 and {len(ORDINALS)}.")
    story = _ids(tokenizer, read_text(Path(haystack)))
    if not len(story):
        raise DataError(f"The haystack {haystack} has no text.")
    opening = np.asarray(tokenizer.encode(OPENING), dtype=np.int64)
    closing, separator = _ids(tokenizer, CLOSING), _ids(tokenizer, SEPARATOR)
    grid = np.linspace(shortest, longest, lengths).astype(int)
    rng = np.random.default_rng([seed, 0x6B6579])
    while True:
        keys = [_ids(tokenizer, " ".join(rng.choice(WORDS, words))) for _ in range(passkeys)]
        needles = [
            np.concatenate([separator, _ids(tokenizer, NEEDLE.format(ordinal)), key, separator])
            for ordinal, key in zip(ORDINALS, keys, strict=False)
        ]
        tail = np.concatenate(
            [
                np.concatenate([_ids(tokenizer, QUESTION.format(ordinal)), key, separator])
                for ordinal, key in zip(ORDINALS, keys, strict=False)
            ]
        )
        taken = len(opening) + sum(map(len, needles)) + len(closing) + len(tail)
        length = int(rng.choice(grid)) // MULTIPLE * MULTIPLE
        if length <= taken:
            raise DataError(
                f"passkey_rows: {length} tokens are too few, passkeys and questions alone take {taken}: use "
                f"shortest >= {taken + MULTIPLE}, or fewer passkeys or words."
            )
        hay = np.resize(story, length - taken)  # repeats a short one
        places = (np.sort(rng.choice(DEPTHS, passkeys, replace=False)) * len(hay)).astype(int)
        pieces = [opening]
        for piece, needle in zip(np.split(hay, places), [*needles, closing], strict=True):
            pieces += [piece, needle]
        ids = torch.from_numpy(np.concatenate([*pieces, tail]))
        yield CalibrationRow(ids, torch.arange(length) >= length - len(tail))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> np.ndarray:
    return encode(tokenizer, [text])[0]

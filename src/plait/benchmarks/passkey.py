"""Passkey retrieval: a number hidden in repeated sentences about grass and sky.

Mohtashami and Jaggi, "Landmark Attention" (2305.16300), in the format of the authors' ``llama/run_test.py``: five
lines, of which the second and fourth are the start of the same endless filler. With 40 filler characters, 25 of them
before the key::

    There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will quiz ...
    The grass is green. The s
    The pass key is 31337. Remember it. 31337 is the pass key.
    The grass is gr
    What is the pass key? The pass key is
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from plait.benchmarks.base import Benchmark, Prompt
from plait.benchmarks.lengths import largest, token_count
from plait.errors import DataError

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
QUESTION = "What is the pass key? The pass key is"
NEW_TOKENS = 10


@dataclass(frozen=True, kw_only=True)
class Passkey(Benchmark):
    """Options of passkey retrieval.

    The facts of a prompt are ``characters`` (or ``length``, if that was given) and ``depth`` (percent, to the ten).

    Args:
        samples: prompts over all numbers of characters, which take turns.
        characters: filler characters n, before and after the key together; one number or several. The place of the
            key is uniform. Without it and ``length``: 1000.
        length: instead of ``characters``: as many as fit, so that prompt and answer have at most so many tokens.

    Raises:
        DataError: characters below 0, or both ``characters`` and ``length``.
    """

    samples: int = 50
    characters: int | Sequence[int] | None = None
    length: int | None = None
    metric: ClassVar[str] = "accuracy"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "landmark": {
            "characters": [0, 100, 500, 1000, 5000, 8000, 10000, 12000, 14000, 18000, 20000, 25000, 38000],
            "samples": 13 * 50,
        }
    }

    def __post_init__(self) -> None:
        if self.length is not None and self.characters is not None:
            raise DataError("passkey: give either characters or length, not both.")
        given = 1000 if self.characters is None else self.characters
        several = (given,) if isinstance(given, int) else tuple(given)
        if not several or min(several) < 0:
            raise DataError(f"passkey: characters={self.characters} must be one or several numbers from 0.")
        object.__setattr__(self, "characters", several if self.length is None else None)

    def prompt(self, index: int, tokenizer: PreTrainedTokenizerBase) -> Prompt:
        rng = Random(f"passkey {self.seed} {index}")
        key, place = rng.randint(1, 50_000), rng.random()
        characters = self._characters(index, key, place, tokenizer)
        before = _before(characters, place)
        size = {"characters": characters} if self.length is None else {"length": self.length}
        return Prompt(
            text=_text(key, before, characters - before),
            references=(str(key),),
            max_new_tokens=NEW_TOKENS,
            facts={**size, "depth": round(10 * before / max(1, characters)) * 10},
        )

    def score(self, prediction: str, prompt: Prompt) -> float:
        """1 if the first whole number of the answer is the key."""
        number = re.search(r"\d+", prediction)
        return float(number is not None and int(number.group()) == int(prompt.references[0]))

    def _characters(self, index: int, key: int, place: float, tokenizer: PreTrainedTokenizerBase) -> int:
        if self.length is None:
            assert isinstance(self.characters, tuple)
            characters: int = self.characters[index % len(self.characters)]
            return characters

        def tokens(characters: int) -> int:
            before = _before(characters, place)
            return token_count(tokenizer, _text(key, before, characters - before)) + NEW_TOKENS

        found = largest(tokens, self.length, start=4 * self.length)
        if found < 0:
            raise DataError(f"passkey: length={self.length} is too short; use length >= {tokens(0)}.")
        return found


def _before(characters: int, place: float) -> int:
    """Filler characters before the key: uniform on 0..characters for a uniform place in [0, 1)."""
    return int(place * (characters + 1))


def _text(key: int, before: int, after: int) -> str:
    information = f"The pass key is {key}. Remember it. {key} is the pass key."
    return "\n".join([TASK, _filler(before), information, _filler(after), QUESTION])


def _filler(characters: int) -> str:
    repeats = characters // (len(FILLER) + 1) + 1
    return " ".join([FILLER] * repeats)[:characters]

"""Frequent words extraction (``fwe``): coded words with Zipf's frequencies; which three are the most frequent?

Rank k of N words stands ``int(N k^-2 / zeta(2))`` times; rank 1 is the noise ``...``, ranks 2 to 4 are the answer.
Hsieh et al., "RULER" (2404.06654), section 3.3.
"""

from __future__ import annotations

import math
import random
import string
from dataclasses import dataclass
from typing import ClassVar

from transformers import PreTrainedTokenizerBase

from plait.benchmarks.lengths import largest
from plait.benchmarks.ruler.base import SHUFFLE_SEED, Draft, Ruler

NOISE = "..."
_LETTERS = 6
_ZETA_2 = math.pi**2 / 6
_FEWEST_WORDS = 53  # from here on rank 4 is always more frequent than rank 5
_QUESTION = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the "
    "three most frequently appeared words in the above coded text?"
)
_PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"


@dataclass(frozen=True, kw_only=True)
class FrequentWords(Ruler):
    """Random words of six letters, a 50th as many as tokens of the prompt.

    The haystack's size is N, the words of an endless vocabulary; those of ranks beyond the vocabulary are left out. It
    grows from a sixth of the tokens in steps of a 32nd, and goes down by such steps where that is too much.
    """

    name: ClassVar[str] = "fwe"
    new_tokens: ClassVar[int] = 50

    @property
    def room(self) -> int:
        """Tokens that the prompt may have."""
        return self.length - self.new_tokens

    @property
    def increment(self) -> int:
        return max(1, self.room // 32)

    def smallest(self, index: int) -> int:
        """So many that the answer is determined."""
        return _FEWEST_WORDS

    def draft(self, index: int, size: int, tokenizer: PreTrainedTokenizerBase) -> Draft:
        vocabulary = _vocabulary(self.stream(index), max(5, self.room // 50))
        words = [word for rank, word in enumerate(vocabulary, 1) for _ in range(int(size * rank**-2.0 / _ZETA_2))]
        random.Random(SHUFFLE_SEED).shuffle(words)
        return Draft(_QUESTION.format(context=" ".join(words)), _PREFIX, tuple(vocabulary[1:4]))

    def largest(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """The last N of the growing ones whose prompt has fewer tokens than there may be."""
        start = max(_FEWEST_WORDS, self.room // _LETTERS)
        start -= (start - _FEWEST_WORDS) // self.increment * self.increment  # the lowest step
        steps = largest(lambda steps: self.tokens(0, start + steps * self.increment, tokenizer), self.room - 1)
        return start + max(0, steps) * self.increment


def _vocabulary(rng: random.Random, size: int) -> list[str]:
    words: set[str] = set()
    while len(words) < size:
        words.add("".join(rng.choices(string.ascii_lowercase, k=_LETTERS)))
    vocabulary = sorted(words)
    random.Random(SHUFFLE_SEED).shuffle(vocabulary)
    vocabulary[0] = NOISE
    return vocabulary

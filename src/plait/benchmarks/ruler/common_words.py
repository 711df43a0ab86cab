"""Common words extraction (``cwe``): a numbered list in which ten words stand ten times as often as the others.

Hsieh et al., "RULER" (2404.06654), section 3.3.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from transformers import PreTrainedTokenizerBase

from plait.benchmarks.lengths import largest
from plait.benchmarks.ruler.base import SHUFFLE_SEED, Draft, Ruler
from plait.benchmarks.ruler.words import all_words, words_of_file
from plait.errors import DataError

COMMON = 10
_QUESTION = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n{context}\nQuestion: What are the 10 most common words in the above list?"
)
_PREFIX = " Answer: The top 10 words that appear most often in the list are:"


@dataclass(frozen=True, kw_only=True)
class CommonWords(Ruler):
    """Ten common words 30 times and all others 3 times; below length 4096, 6 times and once.

    The haystack's size counts different words. An example of 40 words, 10 and 3 times (20 words, 3 times and once),
    stands before; in a chat it is an earlier turn. ``lm_eval`` leaves it out.

    Args:
        more_words: a file of more words, one a line or JSON, for lengths that need more than wonderwords has; NVIDIA's
            is ``english_words.json``. All words of such a prompt come from there.
    """

    more_words: str = ""

    name: ClassVar[str] = "cwe"
    new_tokens: ClassVar[int] = 120

    @property
    def increment(self) -> int:
        return 10

    def smallest(self, index: int) -> int:
        """The common words alone."""
        return COMMON

    def draft(self, index: int, size: int, tokenizer: PreTrainedTokenizerBase) -> Draft:
        rng = self.stream(index)
        short = self.length < 4096
        shown, shown_common = self._list(rng, 20, 3, 1) if short else self._list(rng, 40, 10, 3)
        context, common = self._list(rng, size, 6, 1) if short else self._list(rng, size, 30, 3)
        example = (_QUESTION.format(context=shown), _numbered(shown_common))
        return Draft(
            _QUESTION.format(context=context),
            _PREFIX,
            tuple(common),
            example=None if self.compat == "lm_eval" else example,
        )

    def largest(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """The number of different words.

        Raises:
            DataError: the lists have too few for this length; the message says how many are needed.
        """
        own = len(all_words(SHUFFLE_SEED))
        most = max(own, len(words_of_file(self.more_words)) if self.more_words else 0)
        limit = self.length - self.new_tokens

        def tokens(more: int) -> int:
            return self.tokens(0, COMMON + more, tokenizer) if COMMON + more <= most else limit + 1

        size = COMMON + max(0, largest(tokens, limit))
        if size == most:
            half, whole = self.tokens(0, most // 2, tokenizer), self.tokens(0, most, tokenizer)
            needed = most + int((limit - whole) / (whole - half) * (most - most // 2))
            if needed > most:
                lists = f"wonderwords has {own}" + (f" and {self.more_words} {most}" if most > own else "")
                raise DataError(
                    f"cwe: length={self.length} needs about {needed} different words, and {lists}; set more_words to a "
                    "file of more English words, one a line or JSON."
                )
        return size

    def _list(self, rng: random.Random, size: int, often: int, seldom: int) -> tuple[str, list[str]]:
        """A numbered list of ``size`` different words, and the ten common ones."""
        own = all_words(SHUFFLE_SEED)
        words = rng.sample(own if size <= len(own) else words_of_file(self.more_words), size)
        common, others = words[:COMMON], words[COMMON:]
        listed = common * often + others * seldom
        random.Random(SHUFFLE_SEED).shuffle(listed)
        return _numbered(listed), common


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))

"""Variable tracking (``vt``): a chain of assignments in noise; which variables have the value?

``VAR A = 12345``, then ``VAR B = VAR A`` and so on, four hops, in this order at random lines of the noise. A solved
example with names of three letters stands before. Hsieh et al., "RULER" (2404.06654), section 3.2.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar

from transformers import PreTrainedTokenizerBase

from plait.benchmarks.lengths import largest
from plait.benchmarks.ruler.base import Draft, Ruler
from plait.benchmarks.ruler.niah import NOISE

HOPS = 4
_QUESTION = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
    "Question: Find all variables that are assigned the value {value} in the text above."
)
_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {count} variables are {assigned} "
    "the value {value}, they are: "
)
_EXAMPLE_LENGTH = 500  # tokens


@dataclass(frozen=True, kw_only=True)
class VariableTracking(Ruler):
    """One chain of four hops; the answer is its five names.

    The haystack's size counts repetitions of five sentences of noise. The example has the most that fit into 500
    tokens, and always enough for its five assignments; its places are the same in all samples, names and value are not.
    Names are distinct, and none is ``VAR``; NVIDIA leaves that to chance.
    """

    name: ClassVar[str] = "vt"
    new_tokens: ClassVar[int] = 30

    @property
    def increment(self) -> int:
        return 5 if self.length < 4096 else 10

    def smallest(self, index: int) -> int:
        """Each assignment stands at another line."""
        return HOPS + 1

    def draft(self, index: int, size: int, tokenizer: PreTrainedTokenizerBase) -> Draft:
        rng = self.stream(index)
        names, value = _names(rng, 5), _value(rng)
        question, prefix = self._frame(names, value, _places(rng, size), size)
        lines = _example_lines(self, tokenizer)
        example_names, example_value = _names(rng, 3), _value(rng)
        places = _places(self.stream("example"), lines)
        shown = "".join(self._frame(example_names, example_value, places, lines))
        return Draft(f"{shown} {' '.join(example_names)}\n\n{question}", prefix, tuple(names))

    def _frame(self, names: list[str], value: str, places: list[int], size: int) -> tuple[str, str]:
        chain = [f"VAR {names[0]} = {value}"]
        chain += [f"VAR {name} = VAR {before} " for before, name in pairwise(names)]
        lines = [NOISE] * size
        for shift, (place, assignment) in enumerate(zip(places, chain, strict=True)):
            lines.insert(place + shift, assignment)
        assigned = "assgined" if self.compat == "lm_eval" else "assigned"
        question = _QUESTION.format(context="\n".join(lines), value=value)
        return question, _PREFIX.format(count=len(names), assigned=assigned, value=value)


@lru_cache(maxsize=64)
def _example_lines(task: VariableTracking, tokenizer: PreTrainedTokenizerBase) -> int:
    smallest = task.smallest(0)

    def tokens(more: int) -> int:
        rng, size = task.stream("example"), smallest + more
        places = _places(rng, size)
        return task.count("".join(task._frame(_names(rng, 3), "12345", places, size)), tokenizer)

    return smallest + max(0, largest(tokens, _EXAMPLE_LENGTH))


def _names(rng: random.Random, letters: int) -> list[str]:
    names: dict[str, None] = {}
    while len(names) < HOPS + 1:
        name = "".join(rng.choices(string.ascii_uppercase, k=letters))
        if name != "VAR":
            names[name] = None
    return list(names)


def _value(rng: random.Random) -> str:
    return str(rng.randrange(10_000, 99_999))


def _places(rng: random.Random, size: int) -> list[int]:
    return sorted(rng.sample(range(size), HOPS + 1))

"""Needle in a haystack, eight variants: "magic" numbers or UUIDs hidden in noise, essays or other needles.

A needle says ``One of the special magic numbers for KEY is: VALUE.``, where a key is an adjective-noun pair or a UUID.
The prompt asks for all values of one key, or of several. Hsieh et al., "RULER" (2404.06654), section 3.1.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from plait.benchmarks.ruler import words
from plait.benchmarks.ruler.base import SHUFFLE_SEED, Draft, Ruler
from plait.benchmarks.ruler.essays import sentences
from plait.errors import OptionError

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_NEEDLE = "One of the special magic {kind} for {key} is: {value}."
_QUESTION = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What are all the special magic {kind} for {query} mentioned in the provided text?"
)
_PREFIX = " The special magic {kind} for {query} mentioned in the provided text are"
_DEPTHS = [int(depth) for depth in np.round(np.linspace(0, 100, 40))]  # percent


class Setting(NamedTuple):
    """What one variant hides, in what, and how much of it."""

    haystack: Literal["noise", "essay", "needle"]
    key: Literal["words", "uuids"]
    value: Literal["numbers", "uuids"]
    keys: int = 1
    values: int = 1  # per key
    queries: int = 1


@dataclass(frozen=True, kw_only=True)
class NeedleInAHaystack(Ruler):
    """The common part of the eight variants.

    The haystack's size counts repetitions of five sentences of noise, words of the essays, or needles that nobody asks
    for. No two needles of a prompt have the same key, or the same value for one key; NVIDIA leaves that to chance.
    """

    setting: ClassVar[Setting]
    new_tokens: ClassVar[int] = 128

    @property
    def increment(self) -> int:
        return 5 if self.length < 4096 else 25

    def smallest(self, index: int) -> int:
        """Needles stand at different places of the lines, so there are as many lines."""
        return self.setting.keys * self.setting.values

    def draft(self, index: int, size: int, tokenizer: PreTrainedTokenizerBase) -> Draft:
        """Sample ``index``; the fact ``depth`` is where the first needle asked for begins, in percent of the text."""
        setting, rng = self.setting, self.stream(index)
        used: set[str] = set()
        pairs = []
        for _ in range(setting.keys):
            key = _other_than(used, _MAKERS[setting.key], rng)
            own: set[str] = set()
            pairs.append((key, [_other_than(own, _MAKERS[setting.value], rng) for _ in range(setting.values)]))
        needles = [self._needle(key, value) for key, values in pairs for value in values]
        random.Random(SHUFFLE_SEED).shuffle(needles)

        context = self._context(size, needles, used, rng)
        asked = [pairs[i] for i in rng.sample(range(setting.keys), setting.queries)]
        keys = [key for key, _ in asked]
        query = f"{', '.join(keys[:-1])}, and {keys[-1]}" if len(keys) > 1 else keys[0]
        values = tuple(value for _, values in asked for value in values)
        question, prefix, kind = _QUESTION, _PREFIX, str(setting.value)
        if len(values) == 1:
            question, prefix, kind = _singular(question), _singular(prefix), kind.removesuffix("s")
        depth = round(100 * context.index(self._needle(keys[0], values[0])) / len(context), 1)
        return Draft(
            question.format(kind=kind, query=query, context=context),
            prefix.format(kind=kind, query=query),
            values,
            facts={"depth": depth},
        )

    def _context(self, size: int, needles: list[str], used: set[str], rng: random.Random) -> str:
        """The needles in the haystack; ``used`` are their keys."""
        lines = [NOISE] * size
        if self.setting.haystack == "needle":
            key, value = _MAKERS[self.setting.key], _MAKERS[self.setting.value]
            lines = [self._needle(_other_than(used, key, rng), value(rng)) for _ in range(size)]
        return _among_lines(rng, lines, needles)

    def _needle(self, key: str, value: str) -> str:
        return _NEEDLE.format(kind=self.setting.value, key=key, value=value)


@dataclass(frozen=True, kw_only=True)
class AmongEssays(NeedleInAHaystack):
    """A variant whose haystack is essays.

    Args:
        essays: a folder of txt files, a txt file, a JSON file with ``text``, or ``hf:NAME``; needed.

    Raises:
        OptionError: no essays.
    """

    essays: str = ""
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {"essays": ("essays",)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.essays:
            raise OptionError(
                f"{self.name} hides its needles in essays: set essays to a folder of txt files, a txt file, a JSON "
                "file with 'text', or hf:NAME."
            )

    @property
    def increment(self) -> int:
        return 500

    def smallest(self, index: int) -> int:
        """One word."""
        return 1

    def _context(self, size: int, needles: list[str], used: set[str], rng: random.Random) -> str:
        return _among_sentences(rng, sentences(self.essays, size), needles)


class NIAHSingle1(NeedleInAHaystack):
    """One number in noise."""

    name = "niah_single_1"
    setting = Setting("noise", "words", "numbers")


class NIAHSingle2(AmongEssays):
    """One number in essays."""

    name = "niah_single_2"
    setting = Setting("essay", "words", "numbers")


class NIAHSingle3(AmongEssays):
    """One UUID in essays."""

    name = "niah_single_3"
    setting = Setting("essay", "words", "uuids")


class NIAHMultikey1(AmongEssays):
    """Four keys in essays, one asked for."""

    name = "niah_multikey_1"
    setting = Setting("essay", "words", "numbers", keys=4)


class NIAHMultikey2(NeedleInAHaystack):
    """One number among needles only."""

    name = "niah_multikey_2"
    setting = Setting("needle", "words", "numbers")


class NIAHMultikey3(NeedleInAHaystack):
    """One UUID among needles only, whose keys are UUIDs too."""

    name = "niah_multikey_3"
    setting = Setting("needle", "uuids", "uuids")


class NIAHMultivalue(AmongEssays):
    """Four numbers of one key, in essays."""

    name = "niah_multivalue"
    setting = Setting("essay", "words", "numbers", values=4)


class NIAHMultiquery(AmongEssays):
    """Four keys in essays, all asked for."""

    name = "niah_multiquery"
    setting = Setting("essay", "words", "numbers", keys=4, queries=4)


def _number(rng: random.Random) -> str:
    return str(rng.randint(10**6, 10**7 - 1))


def _uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


_MAKERS: dict[str, Callable[[random.Random], str]] = {"words": words.pair, "numbers": _number, "uuids": _uuid}


def _other_than(used: set[str], make: Callable[[random.Random], str], rng: random.Random) -> str:
    while (made := make(rng)) in used:
        pass
    used.add(made)
    return made


def _singular(frame: str) -> str:
    return frame.replace("Some", "A").replace("are all", "is").replace("are", "is")


def _among_lines(rng: random.Random, lines: list[str], needles: list[str]) -> str:
    """The first needle goes to the last of the places."""
    places = sorted(rng.sample(range(len(lines)), len(needles)), reverse=True)
    for place, needle in zip(places, needles, strict=True):
        lines.insert(place, needle)
    return "\n".join(lines)


def _among_sentences(rng: random.Random, text: Sequence[str], needles: list[str]) -> str:
    """Needles at depths drawn without replacement; two at one place have two blanks between, as in NVIDIA's."""
    places = sorted(int(len(text) * (depth / 100)) for depth in rng.sample(_DEPTHS, len(needles)))
    parts: list[str] = []
    start = 0
    for place, needle in zip(places, needles, strict=True):
        parts += [" ".join(text[start:place]), needle]
        start = place
    return " ".join([*parts, " ".join(text[start:])])

"""English words: the lists of the package wonderwords, which RULER takes its needles and word lists from."""

from __future__ import annotations

import random
from functools import cache
from importlib import resources
from pathlib import Path

from plait.errors import DataError
from plait.extras import install_command
from plait.files import read_json, read_text

_LISTS = {"adjectivelist.txt": 912, "nounlist.txt": 6782, "verblist.txt": 1042}  # of wonderwords 3.0.1


def pair(rng: random.Random) -> str:
    """``adjective-noun``: one of 912 x 6,782, uniform."""
    return f"{rng.choice(_list('adjectivelist.txt'))}-{rng.choice(_list('nounlist.txt'))}"


@cache
def all_words(shuffle_seed: int) -> tuple[str, ...]:
    """All nouns, adjectives and verbs, each once, in an order fixed by the seed."""
    words = sorted({word for name in _LISTS for word in _list(name)})
    random.Random(shuffle_seed).shuffle(words)
    return tuple(words)


@cache
def words_of_file(path: str) -> tuple[str, ...]:
    """Different words of a file, in its order: one a line, or JSON (a list, or an object whose values are words).

    Raises:
        DataError: a file that cannot be read or holds something else.
    """
    if Path(path).suffix.lower() != ".json":
        return tuple(dict.fromkeys(read_text(Path(path)).split()))
    found = read_json(Path(path))
    found = list(found.values()) if isinstance(found, dict) else found
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise DataError(f"{path} is neither a JSON list of words nor an object whose values are words.")
    return tuple(dict.fromkeys(found))


@cache
def _list(name: str) -> tuple[str, ...]:
    try:
        text = resources.files("wonderwords.assets").joinpath(name).read_text(encoding="utf-8")
    except ModuleNotFoundError:
        raise DataError(f"RULER takes its words from the package wonderwords: {install_command('eval')}") from None
    words = tuple(line.rstrip() for line in text.splitlines())
    if len(words) != _LISTS[name]:
        raise DataError(
            f"wonderwords has {len(words)} words in {name} where RULER's version has {_LISTS[name]}: "
            "pip install wonderwords==3.0.1"
        )
    return words

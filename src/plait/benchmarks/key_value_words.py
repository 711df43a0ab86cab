"""Key-value retrieval from JSON: which value has this key? Keys and values are random UUIDs.

Liu et al., "Lost in the Middle" (2307.03172, section 3), in the format of the authors' ``kv_retrieval.prompt``. With
two pairs, the second of which is asked::

    Extract the value corresponding to the specified key in the JSON object below.

    JSON data:
    {"5a7c0b6e-...": "2f1d9c44-...",
     "e81b57a0-...": "97c3f00d-..."}

    Key: "e81b57a0-..."
    Corresponding value:
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar
from uuid import UUID

from transformers import PreTrainedTokenizerBase

from plait.benchmarks.base import Benchmark, Prompt
from plait.benchmarks.lengths import largest, token_count
from plait.errors import DataError

INSTRUCTION = "Extract the value corresponding to the specified key in the JSON object below.\n\n"
NEW_TOKENS = 100
_FEWEST = 2


@dataclass(frozen=True, kw_only=True)
class KeyValueWords(Benchmark):
    """Options of key-value retrieval.

    The facts of a prompt are ``pairs`` (or ``length``, if that was given) and ``depth`` of the asked pair (percent, to
    the ten).

    Args:
        pairs: of key and value. Without it and ``length``: 75, the smallest setting of the paper.
        length: instead of ``pairs``: as many as fit, so that prompt and answer have at most so many tokens.
        position: of the asked pair: 0 is the first, 1 the last, as a share of the pairs rounded down; without it the
            place is uniform. The paper's index i of K pairs is ``i / (K - 1)``.
        query_first: also name the key before the JSON ("query-aware contextualization").

    Raises:
        DataError: fewer than 2 pairs, a position outside 0..1, or both ``pairs`` and ``length``.
    """

    pairs: int | None = None
    length: int | None = None
    position: float | None = None
    query_first: bool = False
    metric: ClassVar[str] = "accuracy"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "75": {"pairs": 75},
        "140": {"pairs": 140},
        "300": {"pairs": 300},
    }

    def __post_init__(self) -> None:
        if self.pairs is not None and self.length is not None:
            raise DataError("json_retrieval: give either pairs or length, not both.")
        if self.pairs is None and self.length is None:
            object.__setattr__(self, "pairs", 75)
        if self.pairs is not None and self.pairs < _FEWEST:
            raise DataError(f"json_retrieval: pairs={self.pairs} must be at least {_FEWEST}.")
        if self.position is not None and not 0 <= self.position <= 1:
            raise DataError(f"json_retrieval: position={self.position} must be 0 (first) to 1 (last).")

    def prompt(self, index: int, tokenizer: PreTrainedTokenizerBase) -> Prompt:
        rng = Random(f"json_retrieval {self.seed} {index}")
        share = rng.random()
        records: list[tuple[str, str]] = []

        def text(pairs: int) -> tuple[str, int]:
            while len(records) < pairs:
                records.append((_uuid(rng), _uuid(rng)))
            place = int(share * pairs) if self.position is None else int(self.position * (pairs - 1) + 1e-9)
            return self._text(records[:pairs], place), place

        def tokens(more: int) -> int:
            return token_count(tokenizer, text(_FEWEST + more)[0]) + NEW_TOKENS

        pairs = self.pairs
        if pairs is None:
            assert self.length is not None
            more = largest(tokens, self.length, start=self.length // 50)
            if more < 0:
                raise DataError(f"json_retrieval: length={self.length} is too short; use length >= {tokens(0)}.")
            pairs = _FEWEST + more
        prompt, place = text(pairs)
        size = {"pairs": pairs} if self.length is None else {"length": self.length}
        return Prompt(
            text=prompt,
            references=(records[place][1],),
            max_new_tokens=NEW_TOKENS,
            facts={**size, "depth": round(10 * place / (pairs - 1)) * 10},
        )

    def score(self, prediction: str, prompt: Prompt) -> float:
        """1 if the answer contains the value, in whatever case."""
        return float(prompt.references[0].lower() in prediction.lower())

    def _text(self, records: list[tuple[str, str]], place: int) -> str:
        lines = ",\n ".join(f'"{key}": "{value}"' for key, value in records)
        query = f'Key: "{records[place][0]}"\n'
        before = f"{query}\n" if self.query_first else ""
        return f"{INSTRUCTION}{before}JSON data:\n{{{lines}}}\n\n{query}Corresponding value:"


def _uuid(rng: Random) -> str:
    return str(UUID(int=rng.getrandbits(128), version=4))

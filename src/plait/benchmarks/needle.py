"""The needle grid: one sentence in a long text, at several lengths and depths, and the picture of the results.

Kamradt, "Needle In A Haystack: pressure testing LLMs" (github.com/gkamradt/LLMTest_NeedleInAHaystack, 2023). The text
is cut to a number of tokens and the needle goes in between two tokens, moved back to the end of a sentence. The
original asks a chat model and has another model grade the answer; here the answer is begun for the model, so that a
base model can be asked, and it is right if it contains the needle's fact.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from plait.benchmarks.base import Benchmark, Prompt
from plait.benchmarks.lengths import text_of, token_count, token_ids, unbroken
from plait.errors import DataError, OptionError
from plait.files import read_text

NEEDLE = "\nThe best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day.\n"
ANSWER = "eat a sandwich and sit in Dolores Park on a sunny day"
QUESTION = (
    "\n\nQuestion: What is the best thing to do in San Francisco?\nAnswer: The best thing to do in San Francisco is"
)
NEW_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class Needle(Benchmark):
    """Options of the needle grid; the facts of a prompt are ``length`` and ``depth`` (percent).

    Args:
        samples: prompts in all. Each full turn visits every cell of the grid once, in an order that the seed shuffles;
            the first turn begins the haystack at its start, as the original does, later ones elsewhere.
        haystack: text file, or folder whose txt files are joined in order of name; repeated if it is short.
        length: tokens of the longest prompt, answer included.
        shortest: tokens of the shortest; without it a sixteenth of ``length``, but at least twice ``reserved``.
        lengths: columns of the grid, evenly spaced.
        depths: rows of the grid, 0 to 100 percent of the haystack, evenly spaced.
        reserved: tokens kept for question and answer.

    Raises:
        DataError: a grid that does not exist or a haystack that cannot be read.
    """

    samples: int = 64
    haystack: str
    length: int = 16_000
    shortest: int | None = None
    lengths: int = 8
    depths: int = 8
    reserved: int = 200
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {"haystack": ("essays", "haystack.txt")}
    metric: ClassVar[str] = "contains"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "original": {"length": 16_000, "shortest": 1000, "lengths": 35, "depths": 35, "samples": 35 * 35}
    }

    def __post_init__(self) -> None:
        if self.lengths < 1 or self.depths < 1:
            raise DataError(f"needle: lengths={self.lengths} and depths={self.depths} must be at least 1.")
        least = 2 * self.reserved
        shortest = max(self.length // 16, least) if self.shortest is None else self.shortest
        if not 1 <= shortest <= self.length:
            raise DataError(
                f"needle: the shortest prompt ({shortest} tokens) must not be longer than length={self.length}; "
                f"use length >= {max(shortest, 1)}, or set shortest."
            )
        object.__setattr__(self, "shortest", shortest)
        _haystack(self.haystack)

    @property
    def cells(self) -> Sequence[tuple[int, int]]:
        """All pairs of length (tokens) and depth (percent)."""
        assert self.shortest is not None
        return [
            (round(length), round(depth))
            for length in np.linspace(self.length if self.lengths == 1 else self.shortest, self.length, self.lengths)
            for depth in np.linspace(0, 100, self.depths)
        ]

    def prompt(self, index: int, tokenizer: PreTrainedTokenizerBase) -> Prompt:
        cells = self.cells
        turn, place = divmod(index, len(cells))
        length, depth = cells[Random(f"needle {self.seed}").sample(range(len(cells)), len(cells))[place]]
        needle = token_ids(tokenizer, NEEDLE)
        spoken = token_count(tokenizer, QUESTION) + NEW_TOKENS
        shortest = max(self.reserved, spoken) + len(needle) + 1
        if spoken > self.reserved or length < shortest:
            raise DataError(
                f"needle: question and answer take {spoken} tokens and the needle {len(needle)} with this tokenizer; "
                f"use reserved >= {spoken} (now {self.reserved}) and shortest >= {shortest} (now {self.shortest})."
            )
        ids = _haystack_ids(self.haystack, self.length, tokenizer)
        start = Random(f"needle {self.seed} {turn}").randrange(len(ids)) if turn else 0
        wanted = length - self.reserved - len(needle)
        haystack = unbroken(tokenizer, [*ids[start : start + wanted], *ids[: max(0, start + wanted - len(ids))]])
        text = text_of(tokenizer, with_needle(haystack, needle, depth, token_ids(tokenizer, ".")))
        return Prompt(
            text=text + QUESTION,
            references=(ANSWER,),
            max_new_tokens=NEW_TOKENS,
            stop=("\n",),
            facts={"length": length, "depth": depth},
        )

    def score(self, prediction: str, prompt: Prompt) -> float:
        """1 if the answer contains the needle's fact, in whatever case."""
        return float(prompt.references[0].lower() in prediction.lower())


def with_needle(haystack: Sequence[int], needle: Sequence[int], depth: int, periods: Sequence[int]) -> list[int]:
    """The haystack with the needle at ``depth`` percent, moved back to just behind the nearest period.

    Args:
        haystack, needle: ids of tokens.
        depth: 100 appends the needle, wherever the last sentence ends; 0 puts it first.
        periods: ids that spell a period.
    """
    place = int(len(haystack) * (depth / 100))
    if depth < 100:
        while place and haystack[place - 1] not in periods:
            place -= 1
    return [*haystack[:place], *needle, *haystack[place:]]


@dataclass(frozen=True)
class Grid:
    """Scores by length and depth.

    Args:
        lengths: columns, ascending, tokens.
        depths: rows, ascending, percent.
        scores: ``scores[row][column]``, 0 to 1; None where nothing was asked.
    """

    lengths: tuple[int, ...]
    depths: tuple[int, ...]
    scores: tuple[tuple[float | None, ...], ...]


def grid(results: Iterable[Mapping[str, Any]]) -> Grid:
    """Results as a table of lengths and depths.

    Args:
        results: each with ``length``, ``depth`` and ``score``, and ``samples`` where a score is a mean over several:
            the ``groups`` of a score.

    Raises:
        DataError: a result without a length, depth or score.
    """
    sums: dict[tuple[int, int], tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for result in results:
        missing = [key for key in ("length", "depth", "score") if key not in result]
        if missing:
            raise DataError(
                f"The grid needs length, depth and score of each result; {dict(result)} has no {missing[0]}."
            )
        cell, samples = (result["depth"], result["length"]), result.get("samples", 1)
        total, count = sums[cell]
        sums[cell] = total + samples * result["score"], count + samples
    lengths = tuple(sorted({length for _, length in sums}))
    depths = tuple(sorted({depth for depth, _ in sums}))
    means = {cell: total / count for cell, (total, count) in sums.items()}
    return Grid(lengths, depths, tuple(tuple(means.get((depth, length)) for length in lengths) for depth in depths))


def draw_grid(table: Grid, path: str | Path, title: str = "Needle in a haystack") -> Path:
    """Write the grid as a heat map: one HTML file that opens offline.

    Args:
        table: of :func:`grid`.
        path: of the file, which ends in ``.html``.
        title: above the picture.

    Raises:
        OptionError: another ending.
    """
    path = Path(path)
    if path.suffix != ".html":
        raise OptionError(f"The needle grid is drawn as HTML; {path} must end in .html.")
    import plotly.graph_objects as graphs

    labels = [["" if score is None else f"{100 * score:.0f}" for score in row] for row in table.scores]
    heat_map = graphs.Heatmap(
        x=[f"{length:,}" for length in table.lengths],
        y=[f"{depth} %" for depth in table.depths],
        z=[[None if score is None else 100 * score for score in row] for row in table.scores],
        text=labels,
        texttemplate="%{text}",
        hovertemplate="%{x} tokens, depth %{y}: %{z:.1f} %<extra></extra>",
        zmin=0,
        zmax=100,
        colorscale="Cividis",  # read the same with and without colour vision
        xgap=1,
        ygap=1,
        colorbar={"title": "right, %"},
    )
    figure = graphs.Figure(heat_map)
    figure.update_layout(title=title, template="plotly_white")
    figure.update_xaxes(title="tokens of the prompt and answer", type="category")
    figure.update_yaxes(title="depth of the needle", type="category", autorange="reversed")  # the start on top
    figure.write_html(path, include_plotlyjs=True)
    return path


@lru_cache(maxsize=4)
def _haystack_ids(source: str, length: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the haystack, at least ``length``; the text is repeated if it is short."""
    ids = token_ids(tokenizer, _haystack(source))
    return ids * (length // len(ids) + 1)


@cache
def _haystack(source: str) -> str:
    path = Path(source).expanduser()
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    text = "".join(read_text(file) for file in files)
    if not text.strip():
        raise DataError(f"The haystack {source} has no text; give a text file, or a folder with txt files.")
    return text

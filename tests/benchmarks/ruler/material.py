"""What the tests of RULER share: small essays and questions, the tasks with them, and tokenizers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from transformers import PreTrainedTokenizerFast

from plait.benchmarks import build_benchmark
from plait.benchmarks.ruler.base import Ruler
from plait.data.tokenizers import byte_tokenizer

ESSAY = (
    "Mr. Smith writes about rivers, as Prof. Brown did. Rivers carry sand to the sea! Does it settle?\n\n"
    "It settles where the water slows down.  Over many years it turns into stone, and the stone keeps the "
    "marks of the waves. "
)
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
WITH_ESSAYS = ("niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery")
#: Lengths in bytes at which each task has a haystack worth the name.
LENGTHS = {"vt": 2600, "cwe": 2600, "qa_1": 1400, "qa_2": 2000}


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@cache
def folder() -> Path:
    """Essays in two files, SQuAD of 2.0's form with 3 articles of 4 paragraphs, and HotpotQA with 6 rows."""
    path = Path(mkdtemp())
    (path / "essays").mkdir()
    (path / "essays" / "b.txt").write_text("Second. " + ESSAY * 5)
    (path / "essays" / "a.txt").write_text("First. " + ESSAY * 5)
    articles = [
        {
            "paragraphs": [
                {
                    "context": paragraph(article, number),
                    "qas": [
                        {
                            "question": f"Which is {article} {number}?",
                            "answers": [{"text": f"right{article}{number}"}, {"text": "right"}],
                            "is_impossible": number == 3,
                        }
                    ],
                }
                for number in range(4)
            ]
        }
        for article in range(3)
    ]
    (path / "squad.json").write_text(json.dumps({"data": articles}))
    rows = [
        {
            "question": f"Question {row}?",
            "answer": f"answer {row}",
            "context": [[f"Title {row} {number}", [f"One of {row}.", " Two."]] for number in range(10)],
        }
        for row in range(6)
    ]
    (path / "hotpotqa.json").write_text(json.dumps(rows))
    return path


def paragraph(article: int, number: int) -> str:
    return f"Paragraph {number} of article {article}. " + "It has some words. " * 5


def task(name: str, **options: Any) -> Ruler:
    """A task with the small data it needs, 20 samples."""
    options = {"samples": 20, "length": LENGTHS.get(name, 1024), **options}
    if name in WITH_ESSAYS:
        options.setdefault("essays", str(folder() / "essays"))
    if name in ("qa_1", "qa_2"):
        options.setdefault("questions", str(folder() / {"qa_1": "squad.json", "qa_2": "hotpotqa.json"}[name]))
    benchmark = build_benchmark(name, options)
    assert isinstance(benchmark, Ruler)
    return benchmark

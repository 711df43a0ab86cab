"""Counting, cutting and filling: to the token, by few counts, and never through a character."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.probe_samples import PARAGRAPH, count, tokenizer
from plait.benchmarks.lengths import first_tokens, largest, last_tokens, text_of, token_ids, unbroken


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_parts_have_at_most_so_many_tokens_and_nearly_as_many(name: str) -> None:
    whole = count(name, PARAGRAPH)
    for length in (1, 2, 17, whole // 2, whole - 1):
        first, last = first_tokens(tokenizer(name), PARAGRAPH, length), last_tokens(tokenizer(name), PARAGRAPH, length)
        assert PARAGRAPH.startswith(first)
        assert PARAGRAPH.endswith(last)
        for part in (first, last):
            assert length - 3 <= count(name, part) <= length
    assert (
        first_tokens(tokenizer(name), PARAGRAPH, whole) == last_tokens(tokenizer(name), PARAGRAPH, whole) == PARAGRAPH
    )


def test_a_cut_never_halves_a_character() -> None:
    bytes_ = tokenizer("bytes")
    assert first_tokens(bytes_, "a€b", 3) == "a"  # the euro sign takes three bytes
    assert first_tokens(bytes_, "a€b", 4) == "a€"
    assert first_tokens(bytes_, "a😀b", 4) == "a"  # three of its four bytes
    assert last_tokens(bytes_, "a€b", 3) == "b"
    assert last_tokens(bytes_, "a€b", 4) == "€b"
    assert text_of(bytes_, unbroken(bytes_, token_ids(bytes_, "€a€")[1:-1])) == "a"
    assert unbroken(bytes_, token_ids(bytes_, "€")[:2]) == []


@pytest.mark.parametrize("start", [1, 7, 1000])
def test_largest_that_fits(start: int) -> None:
    calls: list[int] = []

    def tokens(n: int) -> int:
        calls.append(n)
        return 13 + 7 * n + n % 3  # 13, 21, 29, 34, ...

    assert largest(tokens, 12, start) == -1
    assert largest(tokens, 20, start) == 0
    assert largest(tokens, 21, start) == 1
    calls.clear()
    found = largest(tokens, 70_000, start)
    assert tokens(found) <= 70_000 < tokens(found + 1)
    assert len(calls) < 25


def test_a_part_that_has_more_tokens_by_itself_is_cut_further() -> None:
    marked = Tokenizer(models.BPE(vocab={"▁": 0, "a": 1, "b": 2, "▁a": 3}, merges=[("▁", "a")]))
    marked.pre_tokenizer = pre_tokenizers.Metaspace()  # a mark stands before every text, as Llama's tokenizer sets it
    marked.decoder = decoders.Metaspace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=marked)
    assert token_ids(wrapped, "abb") == [3, 2, 2]
    assert token_ids(wrapped, "bb") == [0, 2, 2]  # the last two of three tokens are three by themselves
    assert last_tokens(wrapped, "abb", 2) == "b"
    assert last_tokens(wrapped, "abb", 1) == ""
    assert first_tokens(wrapped, "abb", 2) == "ab"

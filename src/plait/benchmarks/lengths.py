"""Token budgets of prompts: counting, cutting, and filling up to a length."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from plait.data.tokenizers import encode

#: What decoders write for a character of which a cut left a part.
_BROKEN = "\ufffd"
#: Tokens that one character takes at most.
_LONGEST = 4


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text, without special tokens."""
    ids: list[int] = encode(tokenizer, [text])[0].tolist()
    return ids


def token_count(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Tokens of a text, without special tokens."""
    return len(encode(tokenizer, [text])[0])


def text_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of ids as it is: no blanks tidied away."""
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def unbroken(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Ids without those at either end that spell only a part of a character, as a cut between tokens can leave them."""
    first, end = 0, len(ids)
    while first < end and text_of(tokenizer, ids[first : first + _LONGEST]).startswith(_BROKEN):
        first += 1
    while first < end and text_of(tokenizer, ids[max(first, end - _LONGEST) : end]).endswith(_BROKEN):
        end -= 1
    return ids[first:end]


def first_tokens(tokenizer: PreTrainedTokenizerBase, text: str, count: int) -> str:
    """The longest start of a text that has at most ``count`` tokens, to the token."""
    return _part(tokenizer, text, count, lambda ids, kept: ids[:kept])


def last_tokens(tokenizer: PreTrainedTokenizerBase, text: str, count: int) -> str:
    """The longest end of a text that has at most ``count`` tokens, to the token."""
    return _part(tokenizer, text, count, lambda ids, kept: ids[len(ids) - kept :])


def _part(
    tokenizer: PreTrainedTokenizerBase, text: str, count: int, part: Callable[[list[int], int], list[int]]
) -> str:
    ids = token_ids(tokenizer, text)
    if len(ids) <= count:
        return text
    for kept in range(count, 0, -1):  # a part can have more tokens than it had within the whole
        found = text_of(tokenizer, unbroken(tokenizer, part(ids, kept)))
        if token_count(tokenizer, found) <= count:
            return found
    return ""


def largest(count: Callable[[int], int], budget: int, start: int = 1) -> int:
    """The largest n from 0 with ``count(n) <= budget``, for a count that grows with n; -1 where already 0 is too much.

    Interpolates between one n that fits and one that does not, so that long prompts are counted only a few times.

    Args:
        count: tokens at n; must grow without bound.
        budget: tokens that there are.
        start: a first guess.
    """
    low, at_low = 0, count(0)
    if at_low > budget:
        return -1
    high = max(1, start)
    while (at_high := count(high)) <= budget:
        low, at_low, high = high, at_high, 2 * high
    while high - low > 1:
        guess = low + (high - low) * (budget - at_low) // max(1, at_high - at_low)
        guess = min(max(guess, low + 1), high - 1)
        if (at_guess := count(guess)) <= budget:
            low, at_low = guess, at_guess
        else:
            high, at_high = guess, at_guess
    return low

"""Segments that no mixer of the catalogue has yet: tokens with sinks, summaries of blocks, notes; their protocol."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from plait.errors import OptionError
from plait.mixers import LayerState, Notes, Segment, States, Summaries, Tokens

SPLITS = ([17], [1] * 17, [5, 1, 11], [3, 14])


def numbered(length: int, rows: int = 2) -> Tensor:
    """``(rows, length, 1, 1)``: token t of row b is 100 b + t."""
    return (100.0 * torch.arange(rows)[:, None] + torch.arange(length))[..., None, None]


def padded(x: Tensor, padding: list[int]) -> Tensor:
    """The rows' first tokens behind so many slots of padding, which hold -1."""
    y = torch.full_like(x, -1)
    for row, skipped in enumerate(padding):
        y[row, skipped:] = x[row, : x.shape[1] - skipped]
    return y


@pytest.mark.parametrize("pieces", SPLITS)
@pytest.mark.parametrize("padding", [None, [0, 4], [3, 0]])
def test_sinks_and_the_window_stay(pieces: list[int], padding: list[int] | None) -> None:
    segment = Tokens("keys", "number", window=5, sinks=2)
    x = numbered(17) if padding is None else padded(numbered(17), padding)
    left = torch.tensor(padding or [0, 0])
    for piece in x.split(pieces, dim=1):
        skipped = left.clamp(max=piece.shape[1])
        left = left - skipped
        (keys, _), _ = segment.append(piece, piece[..., 0], padding=skipped if padding else None)
        assert torch.equal(keys[:, -piece.shape[1] :], piece) or padding
    lengths = [17 - skipped for skipped in padding or [0, 0]]
    expected = [[100 * row + t for t in (0, 1, *range(n - 4, n))] for row, n in enumerate(lengths)]
    assert segment.keys[..., 0, 0].tolist() == expected
    assert segment.number[..., 0].tolist() == expected
    assert segment.start is None or segment.start.tolist() == [0, 0]
    assert segment.bytes() == 2 * 6 * 4 + 2 * 6 * 4
    assert (segment.held, segment.missing, segment.can_crop) == (6, 0, False)


def test_short_rows_keep_all_beside_longer_ones() -> None:
    segment = Tokens("keys", window=4, sinks=2)
    segment.append(padded(numbered(9), [0, 6]), padding=torch.tensor([0, 6]))
    assert segment.keys[0, :, 0, 0].tolist() == [0, 1, 6, 7, 8]
    assert segment.keys[1, :, 0, 0].tolist()[-3:] == [100, 101, 102]
    assert segment.start.tolist() == [0, 2]
    segment.append(numbered(1) + 50, padding=torch.tensor([0, 0]))
    assert segment.keys[1, :, 0, 0].tolist()[-4:] == [100, 101, 102, 150]
    assert segment.start.tolist() == [0, 1]


def blocks(x: Tensor, size: int, stride: int) -> Tensor:
    """Means over the blocks of one row ``(T, 1, 1)``, as a loop."""
    means = [x[first : first + size].mean(0) for first in range(0, x.shape[0] - size + 1, stride)]
    return torch.stack(means) if means else x[:0]


@pytest.mark.parametrize("pieces", SPLITS)
@pytest.mark.parametrize(("size", "stride"), [(4, None), (4, 2), (3, 1), (16, 8)])
@pytest.mark.parametrize("padding", [None, [0, 4], [15, 0]])
def test_summaries_close_with_their_blocks(
    pieces: list[int], size: int, stride: int | None, padding: list[int] | None
) -> None:
    segment = Summaries(size, stride, reduce=lambda x: x.mean(2))
    x = numbered(17) if padding is None else padded(numbered(17), padding)
    left = torch.tensor(padding or [0, 0])
    for piece in x.split(pieces, dim=1):
        skipped = left.clamp(max=piece.shape[1])
        left = left - skipped
        values, counts = segment.append(piece, skipped if padding else None)
    for row, skipped in enumerate(padding or [0, 0]):
        expected = blocks(x[row, skipped:], size, stride or size)
        assert int(counts[row]) == len(expected)
        torch.testing.assert_close(values[row, : len(expected)], expected)
        assert not values[row, len(expected) :].any()
        rest = 17 - skipped - len(expected) * (stride or size)
        assert int(segment.lengths[row]) == rest


def test_blocks_leave_no_token_out() -> None:
    with pytest.raises(OptionError, match="stride 5 is above the block's size 3"):
        Summaries(3, 5, reduce=lambda x: x.mean(2))


def test_summaries_are_reordered_and_copied_with_their_open_blocks() -> None:
    segment = Summaries(4, reduce=lambda x: x.amax(2))
    segment.append(numbered(6))
    twin = segment.copy()
    segment.select_rows(torch.tensor([1, 1, 0]))
    values, _ = segment.append(numbered(2, rows=3) + 1000)
    assert values[..., 0, 0].tolist() == [[103, 1001], [103, 1101], [3, 1201]]
    values, _ = twin.append(numbered(2) + 7)
    assert values[..., 0, 0].tolist() == [[3, 8], [103, 108]]
    assert twin.bytes() == 2 * 2 * 4  # two entries a row, and no open token
    twin.clear()
    assert twin.bytes() == 0


def test_notes_and_states_are_named_tensors_of_a_row() -> None:
    notes, states = Notes("last", "count"), States("S", "step")
    assert (notes.last, states.S) == (None, None)
    assert not list(notes.tensors())
    notes.last, notes.count = torch.arange(6.0).view(3, 2), torch.tensor([1, 2, 3])
    notes.select_rows(torch.tensor([2, 0]))
    assert (notes.last.tolist(), notes.count.tolist()) == ([[4.0, 5.0], [0.0, 1.0]], [3, 1])
    assert notes.bytes() == 16 + 16
    assert (States.recurrent, Notes.recurrent) == (True, False)
    with pytest.raises(AttributeError, match="A Notes segment has no 'other'"):
        notes.other  # noqa: B018
    twin = notes.copy()
    notes.last.zero_()
    assert twin.last.any()


class Ring(Segment):
    """A segment of another package, that can always forget and keeps an index of its own."""

    fields = ("value", "order")
    bookkeeping = ("order",)
    always_crops = can_crop = True

    def __init__(self) -> None:
        self.value, self.order = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)


def test_strange_segments_speak_for_themselves() -> None:
    state = LayerState({"ring": Ring(), "kv": Tokens("keys")})
    assert state.always_crops
    assert state.bytes() == 24
    assert Ring().carried() == ["value"]
    assert not LayerState({"ring": Ring(), "states": States()}).always_crops
    assert not LayerState({"kv": Tokens("keys", window=3)}).always_crops

"""Every form of a visibility says what its definition says."""

from __future__ import annotations

import pytest
import torch

from plait.errors import OptionError
from plait.ops.visibility import Blocks, Causal, Disc, Full, Lists, PerHead, Power, Visibility, Window, shifted

LENGTH = 61
PATTERNS = {
    "full": Full(),
    "causal": Causal(),
    "window": Window(7),
    "window of one": Window(1),
    "window, sinks": Window(5, sinks=3),
    "window beyond the text": Window(100, sinks=2),
    "blocks": Blocks(8),
    "blocks, back": Blocks(8, back=2),
    "blocks, sinks": Blocks(8, sinks=3),
    "blocks, offset": Blocks(8, offset=4, sinks=1),
    "power": Power(4, window=2),
    "power, no sink": Power(3, window=1, sink=False),
    "disc": Disc(7, 8, 2.0, text=5),
    "disc, no text": Disc(7, 8, 3.5, text=5),
}


def by_hand(visibility: Visibility, i: int, j: int) -> bool:
    """The papers' definitions once more, a pair at a time."""
    match visibility:
        case Full():
            return True
        case Causal():
            return j <= i
        case Window(window, sinks):
            return j <= i and (i - j < window or j < sinks)
        case Blocks(size, back, sinks, offset):
            return j <= i and ((i + offset) // size - (j + offset) // size <= back or j < sinks)
        case Power(size, window, sink):
            distance = i // size - j // size
            powers = {2**power for power in range(10)}
            return j <= i and (distance < window or distance in powers or (sink and j // size == 0))
        case Disc(_, width, radius, text):
            if i < text or j < text:
                return True
            (y, x), (b, a) = divmod(i - text, width), divmod(j - text, width)
            return (y - b) ** 2 + (x - a) ** 2 < radius**2
    raise AssertionError(visibility)


@pytest.fixture(params=PATTERNS.values(), ids=PATTERNS.keys())
def pattern(request: pytest.FixtureRequest) -> Visibility:
    return request.param


def test_the_matrix_is_the_definition(pattern: Visibility) -> None:
    expected = torch.tensor([[by_hand(pattern, i, j) for j in range(LENGTH)] for i in range(LENGTH)])
    assert torch.equal(pattern.dense(LENGTH), expected)
    assert torch.equal(pattern.dense(LENGTH, first=17), expected[17:])
    assert pattern.causal == (not expected.triu(1).any())


def test_degrees_are_sums_of_the_matrix(pattern: Visibility) -> None:
    expected = pattern.dense(LENGTH).sum(1)
    assert torch.equal(pattern.degrees(torch.arange(LENGTH), LENGTH), expected)
    assert pattern.pairs([LENGTH], first=9) == expected[9:].sum()


@pytest.mark.parametrize(("first", "last"), [(0, 1), (0, 16), (13, 14), (13, 30), (48, 61)])
def test_ranges_hold_what_some_query_sees_and_nothing_else(pattern: Visibility, first: int, last: int) -> None:
    found = torch.zeros(LENGTH, dtype=torch.bool)
    for low, high in pattern.ranges(first, last, LENGTH):
        assert not found[low:high].any(), "ranges overlap"
        found[low:high] = True
    assert torch.equal(found, pattern.dense(LENGTH)[first:last].any(0))


@pytest.mark.parametrize(("block", "page"), [(1, 1), (4, 4), (8, 3), (16, 16), (64, 8)])
def test_lists_cover_the_visible_pairs_and_no_page_in_vain(pattern: Visibility, block: int, page: int) -> None:
    lists = pattern.blocks(LENGTH, block, page)
    seen = pattern.dense(LENGTH)
    for number in range(lists.index.shape[2]):
        pages = lists.index[0, 0, number, : lists.counts[0, 0, number]].tolist()
        rows = seen[number * block : (number + 1) * block].any(0)
        assert pages == sorted({key // page for key in rows.nonzero().flatten().tolist()})


def test_a_cache_may_forget_what_no_later_query_sees(pattern: Visibility) -> None:
    if not pattern.causal:
        return
    later = pattern.dense(4 * LENGTH)
    for tokens in (1, 7, 8, 9, 40, LENGTH):
        assert not (later[tokens:, :tokens].any(0) & ~pattern.keeps(tokens)).any(), "a key that is needed is forgotten"
    if isinstance(pattern, Window | Blocks):
        for tokens in (1, 7, 8, 9, 40, LENGTH):
            assert torch.equal(later[tokens:, :tokens].any(0), pattern.keeps(tokens)), "a key is kept in vain"


def test_the_power_pattern_has_the_published_counts() -> None:
    """The last of 128 blocks with a window of 5 sees 10, all rows together 1,141 (2503.03588)."""
    power = Power(256, window=5)
    assert len(power.key_blocks(127)) == 10
    assert sum(len(power.key_blocks(block)) for block in range(128)) == 1141


@pytest.mark.parametrize(("radius", "count"), [(1, 1), (4, 45), (8, 193), (16, 793), (32, 3205)])
def test_discs_hold_the_published_counts(radius: int, count: int) -> None:
    side = 2 * radius + 1
    middle = torch.tensor([side * side // 2])
    assert Disc(side, side, radius).degrees(middle, side * side).tolist() == [count]


def test_heads_share_a_pattern_or_have_their_own() -> None:
    visibility = shifted(8, 0.25, sinks=1)
    heads = [visibility.of_head(head, 8) for head in range(8)]
    assert heads == [Blocks(8, sinks=1)] * 6 + [Blocks(8, sinks=1, offset=4)] * 2
    seen = torch.stack([head.dense(LENGTH) for head in heads]).any(0)
    assert torch.equal(visibility.dense(LENGTH), seen)
    assert shifted(8, 0) == Blocks(8)
    assert shifted(8, 1) == Blocks(8, offset=4)


def test_chosen_pages_are_what_rows_see() -> None:
    index = torch.tensor([[[[0, 1], [1, 0]]], [[[1, 0], [0, 1]]]])
    counts = torch.tensor([[[1, 2]], [[1, 1]]])
    mask = Lists(index, counts, block=3, page=2, first=1).mask(6)
    keys = torch.arange(6)
    for row in range(2):
        for query in range(1, 6):
            number = (query - 1) // 3
            pages = index[row, 0, number, : counts[row, 0, number]]
            expected = torch.isin(keys // 2, pages) & (keys <= query)
            assert torch.equal(mask[row, 0, query - 1], expected)


def test_flex_masks_are_the_matrix(pattern: Visibility) -> None:
    mask = pattern.flex(LENGTH, device="cpu")
    rows, columns = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)
    zero = torch.zeros((), dtype=torch.int64)
    assert torch.equal(mask.mask_mod(zero, zero, rows, columns), pattern.dense(LENGTH))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Window(0), "window = 0 must be 1 or more"),
        (lambda: Blocks(0), "size = 0 must be 1 or more"),
        (lambda: Disc(2, 2, 0), "radius = 0 must be above 0"),
        (lambda: shifted(7), "group = 7 must be even"),
        (lambda: shifted(8, 1.5), "fraction = 1.5"),
        (lambda: PerHead(((Causal(), 0.5),)), "sum to 0.5"),
    ],
)
def test_what_means_nothing_is_refused(build, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build()

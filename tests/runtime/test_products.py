"""Gathered products against the definition written as loops, for every way a logit is made."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from plait.mixers.state import LayerState
from plait.policies import Call, LayerInfo
from plait.runtime import products as products_module
from plait.runtime.call import Forward, Scoring
from plait.runtime.meter import Meter
from plait.runtime.products import band, chosen, masked, packed, packs, paged, probabilities, with_sums
from plait.runtime.store import Keys

SCORINGS = {
    "plain": Scoring(0.4),
    "softcap": Scoring(0.4, softcap=1.5),
    "sinks": Scoring(0.3, sink_logits=torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)),
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def call_of(
    scoring: Scoring, *, past: list[int], length: int, lengths: list[int] | None = None, reference: bool = False
) -> Call:
    rows = len(past)
    held = torch.tensor(past)
    same = lengths is None and len(set(past)) == 1
    forward = Forward(
        "prefill", held, past[0] if same else None, lengths=None if lengths is None else torch.tensor(lengths)
    )
    return Call(
        layer=LayerInfo(0, 4, 2, 6, 5),
        q=random(rows, 4, length, 6),
        k=random(rows, 2, length, 6),
        v=random(rows, 2, length, 5),
        positions=held[:, None] + torch.arange(length),
        scoring=scoring,
        state=LayerState({}),
        forward=forward,
        meter=Meter(),
        reference=reference,
    )


def by_hand(call: Call, keys: Keys, sees: object) -> tuple[Tensor, int]:
    """The definition, number by number; ``sees(b, h, t, s)`` says which slots a query sees."""
    rows, heads, length = call.q.shape[:3]
    scores = (call.q @ keys.keys.repeat_interleave(2, dim=1).mT * call.scoring.scale).tolist()
    out, pairs = torch.zeros(rows, heads, length, 5, dtype=torch.float64), 0
    for b in range(rows):
        real = length if call.lengths is None else int(call.lengths[b])
        for h in range(heads):
            for t in range(real):
                weights = [0.0] * keys.size
                for s in range(keys.size):
                    if sees(b, h, t, s):  # type: ignore[operator]
                        logit = scores[b][h][t][s]
                        if call.scoring.softcap is not None:
                            logit = call.scoring.softcap * math.tanh(logit / call.scoring.softcap)
                        weights[s] = math.exp(logit)
                        pairs += 1
                total = sum(weights)
                if call.scoring.sink_logits is not None:
                    total += math.exp(float(call.scoring.sink_logits[h]))
                out[b, h, t] = torch.tensor(weights, dtype=torch.float64) / total @ keys.values[b, h // 2]
    return out, pairs


def check(call: Call, found: Tensor, expected: tuple[Tensor, int]) -> None:
    real = call.real
    if real is not None:
        found = found * real[:, None, :, None]
    torch.testing.assert_close(found, expected[0])
    assert call.meter.pairs(0) == expected[1]


@pytest.fixture(params=[2**22, 40], ids=["whole", "parts"])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work done at once, and in the smallest parts."""
    monkeypatch.setattr(products_module, "ENTRIES", request.param)
    if request.param == 40:
        monkeypatch.setattr(products_module, "MIN_BLOCK", 2)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize(("window", "sinks"), [(None, 0), (3, 0), (3, 2), (1, 1), (20, 3)])
@pytest.mark.parametrize(
    ("past", "length", "lengths"), [([0], 7, None), ([6], 1, None), ([4, 4], 5, None), ([0, 0], 7, [7, 3])]
)
def test_band(
    scoring: str, window: int | None, sinks: int, past: list[int], length: int, lengths: list[int] | None
) -> None:
    rows, size = len(past), past[0] + length
    keys = Keys(random(rows, 2, size, 6, seed=1), random(rows, 2, size, 5, seed=2))

    def sees(b: int, h: int, t: int, s: int) -> bool:
        p = past[b] + t
        return s <= p and (window is None or p - s < window or s < sinks)

    for reference in (False, True):
        call = call_of(SCORINGS[scoring], past=past, length=length, lengths=lengths, reference=reference)
        check(call, band(call, keys, window=window, sinks=sinks), by_hand(call, keys, sees))


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("window", [None, 4])
def test_band_over_what_an_eviction_left(window: int | None) -> None:
    """Positions differ by head, lengths by row and head; a query's position decides what it sees."""
    positions = torch.tensor([[[0, 2, 5, 6, 7, 8], [1, 5, 6, 7, 8, 0]], [[3, 5, 6, 7, 8, 0], [0, 1, 5, 6, 7, 8]]])
    lengths = torch.tensor([[6, 5], [5, 6]])
    keys = Keys(random(2, 2, 6, 6, seed=1), random(2, 2, 6, 5, seed=2), positions, lengths)

    def sees(b: int, h: int, t: int, s: int) -> bool:
        p = int(positions[b, h // 2, s])
        return s < int(lengths[b, h // 2]) and p <= 5 + t and (window is None or 5 + t - p < window or p < 1)

    for reference in (False, True):
        call = call_of(SCORINGS["plain"], past=[5, 5], length=4, reference=reference)
        check(call, band(call, keys, window=window, sinks=1 if window else 0), by_hand(call, keys, sees))


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("owners", [2, 4])
@pytest.mark.parametrize("lengths", [None, [9, 6]])
def test_chosen(scoring: str, owners: int, lengths: list[int] | None) -> None:
    """Blocks of 4 queries over 9 tokens share slots, chosen by kv head or by query head."""
    generator = torch.Generator().manual_seed(3)
    keys = Keys(random(2, 2, 9, 6, seed=1), random(2, 2, 9, 5, seed=2))
    index = torch.stack([torch.randperm(9, generator=generator) for _ in range(2 * owners * 3)]).view(2, owners, 3, 9)
    valid = torch.rand(index.shape, generator=generator) < 0.5
    valid |= index == 0  # every query sees something

    slots, taken = index.tolist(), valid.tolist()

    def sees(b: int, h: int, t: int, s: int) -> bool:
        o, m = h * owners // 4, t // 4
        return s <= t and taken[b][o][m][slots[b][o][m].index(s)]

    for reference in (False, True):
        call = call_of(SCORINGS[scoring], past=[0, 0], length=9, lengths=lengths, reference=reference)
        check(call, chosen(call, keys, index, valid, block=4), by_hand(call, keys, sees))


@pytest.mark.parametrize("past", [0, 5])
def test_packed(past: int) -> None:
    """Blocks of 4 queries, 9 in all: each query head sees another number of keys before them, and all of its block."""
    size = past + 9
    keys = Keys(random(2, 2, size, 6, seed=1), random(2, 2, size, 5, seed=2))
    seen = torch.rand(3, 2, 4, size, generator=torch.Generator().manual_seed(3)) < 0.5
    seen[1, 1, 3] = True
    for m in range(3):
        seen[m, :, :, past + 4 * m : past + 4 * m + 4] = True
    taken = seen.tolist()
    call = call_of(SCORINGS["plain"], past=[past, past], length=9)
    assert packs(call, keys)
    found = packed(call, keys, (seen[m, :, :, : min(size, past + 4 * m + 4)] for m in range(3)), 4)
    check(call, found, by_hand(call, keys, lambda b, h, t, s: s <= past + t and taken[t // 4][b][h][s]))
    kept = sum(int(seen[m, :, :, : min(size, past + 4 * m + 4)].sum()) for m in range(3))
    assert call.meter.work[0, "prefill"].bytes_read == kept * (6 + 5) * 8


@pytest.mark.parametrize("cached", [2**20, 1], ids=["whole", "parts"])
@pytest.mark.parametrize("length", [12, 10])
def test_paged(length: int, cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of 4: page m of the queries, after 8 earlier tokens, sees its own page of keys and two before it."""
    monkeypatch.setattr(products_module, "CACHED", cached)
    size, generator = 8 + length, torch.Generator().manual_seed(3)
    keys = Keys(random(2, 2, size, 6, seed=1), random(2, 2, size, 5, seed=2))
    pages = torch.stack(
        [
            torch.cat([torch.randperm(2 + m, generator=generator)[:2].sort().values, torch.tensor([2 + m])])
            for _ in range(2 * 4)
            for m in range(3)
        ]
    ).view(2, 4, 3, 3)
    taken = pages.tolist()
    call = call_of(SCORINGS["plain"], past=[8, 8], length=length)
    found = paged(call, keys, pages, 4)
    check(call, found, by_hand(call, keys, lambda b, h, t, s: s <= 8 + t and s // 4 in taken[b][h][t // 4]))


@pytest.mark.parametrize("cached", [2**20, 1], ids=["whole", "parts"])
@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize(("past", "length", "lengths"), [([2, 2], 5, None), ([0, 0], 7, [7, 3])])
def test_with_sums(
    scoring: str,
    past: list[int],
    length: int,
    lengths: list[int] | None,
    cached: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The output, and the weights' sums: values that are one-hot by key show the weights themselves."""
    monkeypatch.setattr(products_module, "CACHED", cached)
    size = past[0] + length
    shown = Keys(random(2, 2, size, 6, seed=1), torch.eye(size, dtype=torch.float64).expand(2, 2, -1, -1))
    keys = Keys(shown.keys, random(2, 2, size, 5, seed=2))
    call = call_of(SCORINGS[scoring], past=past, length=length, lengths=lengths)
    found, sums = with_sums(call, keys)
    check(call, found, by_hand(call, keys, lambda b, h, t, s: s <= past[b] + t))
    real = torch.ones(2, length, dtype=torch.bool) if call.real is None else call.real
    torch.testing.assert_close(sums, (band(call, shown) * real[:, None, :, None]).sum(2))


def test_what_cannot_be_packed() -> None:
    keys = Keys(random(2, 2, 5, 6), random(2, 2, 5, 5))
    assert not packs(call_of(SCORINGS["softcap"], past=[0, 0], length=5), keys)
    assert not packs(call_of(SCORINGS["plain"], past=[0, 0], length=5, lengths=[5, 3]), keys)
    assert not packs(call_of(SCORINGS["plain"], past=[0, 0], length=5, reference=True), keys)
    evicted = Keys(keys.keys, keys.values, torch.arange(5).expand(2, 2, -1))
    assert not packs(call_of(SCORINGS["plain"], past=[0, 0], length=5), evicted)


def test_masked_row_without_keys_is_zero() -> None:
    call = call_of(SCORINGS["plain"], past=[0], length=3)
    keys = Keys(random(1, 2, 3, 6, seed=1), random(1, 2, 3, 5, seed=2))
    mask = torch.ones(1, 4, 3, 3, dtype=torch.bool).tril()
    mask[:, :, 1] = False
    out = masked(call, keys, mask)
    assert not out[:, :, 1].any()
    assert out[:, :, 2].all()


def test_probabilities_sum_to_one_over_the_past() -> None:
    call = call_of(SCORINGS["plain"], past=[2], length=3)
    keys = Keys(random(1, 2, 5, 6, seed=1), random(1, 2, 5, 5, seed=2))
    weights = probabilities(call, keys, call.q, call.positions)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 4, 3, dtype=torch.float64))
    assert weights[0, 0].bool().tolist() == [[s <= 2 + t for s in range(5)] for t in range(3)]
    torch.testing.assert_close(weights @ keys.values.repeat_interleave(2, 1), band(call, keys))
    assert call.meter.work[0, "prefill"].index_pairs == 4 * (3 + 4 + 5)


def test_bytes_read_are_those_of_the_fetched_keys() -> None:
    keys = Keys(random(1, 2, 9, 6, seed=1), random(1, 2, 9, 5, seed=2))
    call = call_of(SCORINGS["plain"], past=[8], length=1)
    chosen(call, keys, torch.tensor([[[[0, 4, 8]], [[1, 2, 8]]]]))
    assert call.meter.work[0, "prefill"].bytes_read == 2 * 3 * (6 + 5) * 8

"""Gathered products against the definition written as loops, for every way a logit is made."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from plait.mixers.state import LayerState
from plait.ops import native
from plait.policies import Call, LayerInfo
from plait.runtime import compiled
from plait.runtime import products as products_module
from plait.runtime.call import Forward, Scoring
from plait.runtime.meter import Meter
from plait.runtime.products import (
    attend_band,
    attend_masked,
    attend_pages,
    attend_with_sums,
    list_keys,
    probabilities,
)
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
        check(call, attend_band(call, keys, window=window, sinks=sinks), by_hand(call, keys, sees))


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
        check(call, attend_band(call, keys, window=window, sinks=1 if window else 0), by_hand(call, keys, sees))


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("owners", [2, 4])
@pytest.mark.parametrize("page", [1, 4])
@pytest.mark.parametrize(
    ("past", "length", "lengths"), [([0, 0], 9, None), ([5, 5], 9, None), ([0, 0], 9, [9, 6]), ([2, 5], 6, None)]
)
def test_attend_pages(
    scoring: str, owners: int, page: int, past: list[int], length: int, lengths: list[int] | None
) -> None:
    """Blocks of 4 queries share pages, chosen by kv head or by query head."""
    generator = torch.Generator().manual_seed(3)
    size, blocks = max(past) + length, -(-length // 4)
    pages = -(-size // page)
    keys = Keys(random(2, 2, size, 6, seed=1), random(2, 2, size, 5, seed=2))
    index = torch.stack([torch.randperm(pages, generator=generator) for _ in range(2 * owners * blocks)])
    index = index.view(2, owners, blocks, pages)
    counts = torch.randint(0, pages + 1, index.shape[:3], generator=generator)
    counts = torch.maximum(counts, (index == 0).int().argmax(-1) + 1)  # every query sees something

    def sees(b: int, h: int, t: int, s: int) -> bool:
        o, m = h * owners // 4, t // 4
        return s <= past[b] + t and s // page in index[b, o, m, : counts[b, o, m]]

    for reference in (False, True):
        call = call_of(SCORINGS[scoring], past=past, length=length, lengths=lengths, reference=reference)
        check(call, attend_pages(call, keys, index, counts, block=4, page=page), by_hand(call, keys, sees))


def test_list_keys() -> None:
    """Each row's true entries, in order, and their number."""
    seen = torch.tensor([[[False, True, True, False], [True, False, False, True]], [[True] * 4, [False] * 4]])
    index, counts = list_keys(seen)
    assert counts.tolist() == [[[2], [2]], [[4], [0]]]
    assert [index[b, x, 0, :n].tolist() for b in range(2) for x in range(2) for n in counts[b, x].tolist()] == [
        [1, 2],
        [0, 3],
        [0, 1, 2, 3],
        [],
    ]


@pytest.mark.skipif(native.absent() is not None, reason="the kernels are not compiled")
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("sums", [False, True])
def test_compiled_attention_over_what_rows_and_heads_hold(window: int | None, sums: bool) -> None:
    """In fp32: lengths by row and head, an eviction before the window, padding behind the new tokens."""
    lengths, new = torch.tensor([[8, 5], [6, 7]]), [4, 2]
    keys = Keys(random(2, 2, 8, 6, seed=1).float(), random(2, 2, 8, 5, seed=2).float(), None, lengths)
    call = call_of(SCORINGS["plain"], past=[5, 5], length=4, lengths=new)
    call = replace(call, q=call.q.float())
    assert compiled.serves(call, keys)
    slots = [[[int(n) - new[b] + t for t in range(4)] for n in lengths[b]] for b in range(2)]

    def sees(b: int, h: int, t: int, s: int) -> bool:
        own = slots[b][h // 2][t]
        return s <= own and (window is None or own - s < window or s < 1)

    exact = by_hand(replace(call, q=call.q.double()), Keys(*(x.double() for x in (keys.keys, keys.values))), sees)[0]
    o, received = compiled.held(call, keys, window, 1 if window else 0, sums)
    torch.testing.assert_close(o.double(), exact, rtol=1e-5, atol=1e-6)
    if received is not None:
        shown = Keys(keys.keys, torch.eye(8).expand(2, 2, -1, -1), None, lengths)
        weights, _ = compiled.held(call, shown, window, 1 if window else 0)
        torch.testing.assert_close(received, weights.sum(2))


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
    found, sums = attend_with_sums(call, keys)
    check(call, found, by_hand(call, keys, lambda b, h, t, s: s <= past[b] + t))
    real = torch.ones(2, length, dtype=torch.bool) if call.real is None else call.real
    torch.testing.assert_close(sums, (attend_band(call, shown) * real[:, None, :, None]).sum(2))


def test_masked_row_without_keys_is_zero() -> None:
    call = call_of(SCORINGS["plain"], past=[0], length=3)
    keys = Keys(random(1, 2, 3, 6, seed=1), random(1, 2, 3, 5, seed=2))
    mask = torch.ones(1, 4, 3, 3, dtype=torch.bool).tril()
    mask[:, :, 1] = False
    out = attend_masked(call, keys, mask)
    assert not out[:, :, 1].any()
    assert out[:, :, 2].all()


def test_probabilities_sum_to_one_over_the_past() -> None:
    call = call_of(SCORINGS["plain"], past=[2], length=3)
    keys = Keys(random(1, 2, 5, 6, seed=1), random(1, 2, 5, 5, seed=2))
    weights = probabilities(call, keys, call.q, call.positions)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 4, 3, dtype=torch.float64))
    assert weights[0, 0].bool().tolist() == [[s <= 2 + t for s in range(5)] for t in range(3)]
    torch.testing.assert_close(weights @ keys.values.repeat_interleave(2, 1), attend_band(call, keys))
    assert call.meter.work[0, "prefill"].index_pairs == 4 * (3 + 4 + 5)


def test_bytes_read_are_those_of_the_fetched_keys() -> None:
    keys = Keys(random(1, 2, 9, 6, seed=1), random(1, 2, 9, 5, seed=2))
    call = call_of(SCORINGS["plain"], past=[8], length=1)
    attend_pages(call, keys, torch.tensor([[[[0, 4, 8]], [[1, 2, 8]]]]))
    assert call.meter.work[0, "prefill"].bytes_read == 2 * 3 * (6 + 5) * 8

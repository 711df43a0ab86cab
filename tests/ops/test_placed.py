"""Softmax over keys at given positions, and over rows and heads that hold their own number of keys, by definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from plait.errors import OptionError
from plait.ops import native
from plait.ops.native.softmax import attend_held
from plait.ops.softmax import attention_weights, placed_attention
from plait.ops.softmax.placed import NEVER
from plait.ops.visibility import Causal, Visibility, Window

ROWS, HEADS, KV_HEADS, LENGTH, SLOTS, WIDTH = 2, 4, 2, 5, 70, 6


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def places_of(lengths: list[list[int]]) -> Tensor:
    """Ascending positions with gaps, those of the last five slots without; empty slots at the end."""
    rows = torch.full((ROWS, KV_HEADS, SLOTS), NEVER)
    for b, heads in enumerate(lengths):
        for g, held in enumerate(heads):
            old = torch.arange(held - LENGTH) * (1 + g) + b
            rows[b, g, :held] = torch.cat([old, torch.arange(200, 200 + LENGTH)])
    return rows


def by_hand(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, sinks: Tensor | None = None) -> tuple[Tensor, Tensor]:
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, dim=2) for x in (k, v))
    weights = (0.4 * torch.einsum("bthd,bshd->bhts", q, k)).exp() * mask
    total = weights.sum(-1) + (0 if sinks is None else sinks.exp()[:, None])
    o = torch.einsum("bhts,bshd->bthd", weights / total.clamp(min=1e-300)[..., None], v)
    return o, total.log().transpose(1, 2)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("visibility", [Causal(), Window(3), Window(60, 2)], ids=str)
@pytest.mark.parametrize("sinks", [False, True])
def test_positions_decide(visibility: Visibility, sinks: bool, backend: str) -> None:
    q = random(ROWS, LENGTH, HEADS, WIDTH)
    k, v = random(ROWS, SLOTS, KV_HEADS, WIDTH, seed=1), random(ROWS, SLOTS, KV_HEADS, WIDTH - 1, seed=2)
    places, positions = places_of([[70, 31], [12, 66]]), torch.arange(200, 200 + LENGTH).expand(ROWS, -1)
    real = torch.arange(LENGTH) < torch.tensor([[5], [3]])
    logits = random(HEADS, seed=3) if sinks else None
    mask = torch.zeros(ROWS, HEADS, LENGTH, SLOTS)
    for b in range(ROWS):
        for h in range(HEADS):
            for t in range(LENGTH):
                for s in range(SLOTS):
                    at, own = int(places[b, h // 2, s]), 200 + t
                    near = isinstance(visibility, Causal) or own - at < visibility.window or at < visibility.sinks  # type: ignore[attr-defined]
                    mask[b, h, t, s] = bool(real[b, t]) and at <= own and near
    given = (q, k, v)
    for x in given:
        x.requires_grad_(True)
    o, lse = placed_attention(
        *given, visibility, positions, places, real=real, scale=0.4, sink_logits=logits, backend=backend
    )
    exact, exact_lse = by_hand(*given, mask, logits)
    torch.testing.assert_close(o, exact)
    torch.testing.assert_close(lse, exact_lse)
    weight = random(*o.shape, seed=4)
    found, expected = (torch.autograd.grad((x * weight).sum(), given, retain_graph=True) for x in (o, exact))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_weights_give_the_output() -> None:
    q, k = random(ROWS, LENGTH, HEADS, WIDTH), random(ROWS, SLOTS, KV_HEADS, WIDTH, seed=1)
    v, sinks = random(ROWS, SLOTS, KV_HEADS, WIDTH, seed=2), random(HEADS, seed=3)
    last = torch.arange(8) < torch.arange(3, 3 + LENGTH)[:, None]
    mask = torch.cat([torch.ones(LENGTH, SLOTS - 8, dtype=torch.bool), last], dim=1)
    for logits in (None, sinks):
        weights = attention_weights(q, k, last, scale=0.4, sink_logits=logits)
        found = torch.einsum("bhts,bshd->bthd", weights, v.repeat_interleave(2, dim=2))
        torch.testing.assert_close(found, by_hand(q, k, v, mask.expand(ROWS, HEADS, -1, -1), logits)[0])
    empty = attention_weights(q, k, torch.zeros(1, 1, 1, SLOTS, dtype=torch.bool), scale=0.4)
    assert not empty.any()


@pytest.mark.skipif(native.absent() is not None, reason="the kernels are not compiled")
@pytest.mark.parametrize("window", [0, 3, 60])
@pytest.mark.parametrize("packed", [False, True])
def test_rows_and_heads_hold_their_own_number(window: int, packed: bool) -> None:
    q = random(ROWS, HEADS, LENGTH, WIDTH).float()
    k, v = (random(ROWS, KV_HEADS, SLOTS, WIDTH, seed=seed).float() for seed in (1, 2))
    held, new = torch.tensor([[70, 31], [12, 66]]), torch.tensor([5, 3])
    own = held[:, :, None] - new[:, None, None] + torch.arange(LENGTH)
    slots = torch.arange(SLOTS)
    seen = (slots <= own[..., None]) & (torch.arange(LENGTH) < new[:, None, None])[..., None]
    if window:
        seen &= (own[..., None] - slots < window) | (slots < 2)
    exact, lse = by_hand(*(x.double().transpose(1, 2) for x in (q, k, v)), seen.repeat_interleave(2, dim=1).double())
    options: dict[str, Any] = {"scale": 0.4, "window": window, "sinks": 2 if window else 0}
    if packed:  # behind each other, with gaps of 3
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), (held.flatten() + 3).cumsum(0)[:-1]]).view(held.shape)
        flat = [torch.full((int((held + 3).sum()), WIDTH), torch.nan) for _ in range(2)]
        for b in range(ROWS):
            for g in range(KV_HEADS):
                place = slice(int(starts[b, g]), int(starts[b, g] + held[b, g]))
                for x, y in zip(flat, (k, v), strict=True):
                    x[place] = y[b, g, : held[b, g]]
        o, found, _ = attend_held(q, *flat, held, new, starts, **options)
    else:
        o, found, _ = attend_held(q, k, v, held, new, **options)
    torch.testing.assert_close(o.double(), exact.transpose(1, 2), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.double(), lse.transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(native.absent() is not None, reason="the kernels are not compiled")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"held": torch.tensor([[71, 3], [12, 6]])}, "do not exist"),
        ({"held": torch.tensor([[2, 31], [12, 6]])}, "do not exist"),
        ({"new": torch.tensor([6, 1])}, "do not exist|0..5"),
        ({"new": torch.tensor([5, -1])}, "0..5"),
        ({"starts": torch.tensor([[0, 40], [41, 60]])}, "2 axes"),
        ({"held": torch.tensor([70, 31])}, "held must be int64"),
        ({"window": -1}, "window=-1"),
        ({"scale": float("nan")}, "scale"),
        ({"q": torch.zeros(2, 3, 5, 6)}, "multiple of G"),
        ({"v": torch.zeros(2, 2, 60, 6)}, "k .* and v"),
    ],
)
def test_arguments_are_checked_before_the_kernel_reads_them(change: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {
        "q": torch.zeros(2, 4, 5, 6),
        "k": torch.zeros(2, 2, 70, 6),
        "v": torch.zeros(2, 2, 70, 6),
        "held": torch.tensor([[70, 31], [12, 66]]),
        "new": torch.tensor([5, 3]),
        "scale": 0.4,
    }
    attend_held(**given)
    with pytest.raises(OptionError, match=words):
        attend_held(**{**given, **change})

"""The rule of the claim about sinks on figures made by hand, and what its experiment measures."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plait.claims.window_sinks import CACHE, LENGTH, PIECES, SinksKeepAWindowAlive, late_loss, pieces
from plait.data.tokenizers import byte_tokenizer


def data(alone: float, kept: float, spread: float = 0.01) -> dict[str, Any]:
    """Losses around 1.5 with dense attention, and around these with the window alone and with four sinks."""

    def three(mean: float) -> list[float]:
        return [mean - spread, mean, mean + spread / 2]

    return {"dense": [1.5] * 3, "streaming": {s: three(kept if s == "4" else alone) for s in ("0", "1", "2", "4", "8")}}


@pytest.mark.parametrize(
    ("alone", "kept", "verdict"),
    [
        (4.5, 1.6, "holds"),
        (1.5, 1.5, "does not hold"),  # no damage
        (2.3, 1.5, "does not hold"),  # 0.8 nat
        (4.5, 3.5, "does not hold"),  # a third restored
        (2.51, 1.5, "inconclusive"),  # damage of 1 nat, give or take
        (4.5, 3.0, "inconclusive"),  # a half restored, give or take
    ],
)
def test_the_rule_on_figures_by_hand(alone: float, kept: float, verdict: str) -> None:
    assert SinksKeepAWindowAlive().decide(data(alone, kept))[0] == verdict


def test_what_is_seen_names_damage_and_share() -> None:
    """Damage 3, of which 2.4 are taken back."""
    _, seen = SinksKeepAWindowAlive().decide(data(4.5, 2.1, spread=0.0))
    assert "damage 3.000 (3.000 to 3.000) nat per token, of which 0.800 (0.800 to 0.800) is restored." in seen


def test_seeds_that_disagree_decide_nothing() -> None:
    assert SinksKeepAWindowAlive().decide(data(4.5, 1.6, spread=2.0))[0] == "inconclusive"


class Clock(nn.Module):
    """Gives the right next token, here always 0, a logit of 0 and the only other one log(position)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        positions = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        return SimpleNamespace(
            logits=torch.stack([torch.zeros_like(positions, dtype=torch.float), positions.log()], -1)
        )


def test_tokens_with_less_than_the_cache_before_them_do_not_count() -> None:
    """The loss at position p is log(1 + p), for p from the cache's size on."""
    expected = sum(math.log(1 + p) for p in range(CACHE, CACHE + 6)) / 6
    assert late_loss(Clock(), torch.zeros(2, CACHE + 7, dtype=torch.long)) == pytest.approx(expected, rel=1e-6)


def test_pieces_are_parts_of_the_text_drawn_once() -> None:
    size = LENGTH + 1
    text = "".join(f"{number:0{size}d}" for number in range(2 * PIECES))
    drawn = [bytes(row).decode() for row in (pieces(text, byte_tokenizer(), 0)).tolist()]
    numbers = [int(piece) for piece in drawn]
    assert len(set(numbers)) == PIECES
    assert all(len(piece) == size for piece in drawn)
    assert max(numbers) < 2 * PIECES
    assert drawn != [bytes(row).decode() for row in pieces(text, byte_tokenizer(), 1).tolist()]

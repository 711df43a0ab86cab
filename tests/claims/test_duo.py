"""The rule of the claim about DuoAttention's heads on figures made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from plait.claims.duo import SHARES, AFractionOfHeadsSuffices


def data(full: float, trained: float, random: float, spread: float = 0.005) -> dict[str, Any]:
    """Recall of three seeds: with all heads, and at every share of full heads by gates and by chance (two draws)."""

    def row(seed: int, chosen: str, share: float, recall: float) -> dict[str, Any]:
        tasks = {"one": recall + 0.01, "other": recall - 0.01}  # their mean counts
        return {"seed": seed, "chosen": chosen, "share": share, "recall": tasks}

    recalls = []
    for seed in (0, 1, 2):
        recalls += [row(seed, "all", 1.0, full), row(seed, "none", 0.0, 0.02)]
        for share in SHARES:
            recalls.append(row(seed, "trained", share, trained + spread * (seed - 1)))
            recalls += [row(seed, "random", share, random + sign * spread) for sign in (-1, 1)]
    return {"gates": [], "recalls": recalls}


@pytest.mark.parametrize(
    ("full", "trained", "random", "verdict"),
    [
        (1.0, 0.98, 0.5, "holds"),
        (0.92, 0.9, 0.5, "holds"),  # 0.978 of what full attention recalls
        (0.89, 0.89, 0.5, "inconclusive"),  # full attention has not learnt
        (1.0, 0.9, 0.5, "does not hold"),
        (1.0, 0.98, 0.97, "does not hold"),  # any heads suffice
        (1.0, 0.96, 0.5, "inconclusive"),  # 0.947 to 0.973
        (1.0, 0.99, 0.95, "inconclusive"),  # chance at the bound, give or take
    ],
)
def test_the_rule_on_figures_by_hand(full: float, trained: float, random: float, verdict: str) -> None:
    outcome, seen = AFractionOfHeadsSuffices().decide(data(full, trained, random))
    assert outcome == verdict
    assert f"with 50 % full heads {trained / full:.3f} (" in seen


def test_the_figure_begins_where_all_heads_stream() -> None:
    figure = AFractionOfHeadsSuffices().figure(data(0.8, 0.8, 0.4))
    assert figure.categories == ["0 %", "25 %", "50 %", "75 %"]
    means = [[round(value.mean, 3) for value in line.values if value] for line in figure.lines]
    assert means == [[0.025, 1.0, 1.0, 1.0], [0.025, 0.5, 0.5, 0.5], [1.0] * 4]

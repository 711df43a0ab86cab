"""The presses of NVIDIA's kvpress beside the policies of the same names: which positions of a prompt are kept.

Where it is installed (``pip install --no-deps kvpress cachetools``); it scores attention that is computed here.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from policies.driver import Driver

pytestmark = pytest.mark.slow
kvpress = pytest.importorskip("kvpress")

PROMPT, KEPT, WINDOW, SEEDS = 64, 16, 8, 20  # a ratio without rounding


def presses_scores(press: Any, driver: Driver) -> Any:
    """Scores ``(G, T)`` of a press for the driver's prompt."""
    config = SimpleNamespace(num_attention_heads=4, num_key_value_heads=2, _attn_implementation="sdpa")
    module = SimpleNamespace(config=config, head_dim=8)
    k, v = driver.k[:, :, :PROMPT], driver.v[:, :, :PROMPT]
    weights = driver.weights()[:, :, :PROMPT, :PROMPT]
    hidden = torch.zeros(1, PROMPT, 8, dtype=torch.float64)
    if hasattr(press, "alpha_safeguard"):
        press.compress(module, hidden, k, v, weights, {})
        return module.masked_key_indices
    return press.score(module, hidden, k, v, weights, {})[0]


def presses_choice(press: Any, driver: Driver) -> list[set[int]]:
    found = presses_scores(press, driver)
    if isinstance(found, tuple):
        _, heads, slots = found
        return [set(range(PROMPT)) - set(slots[heads == head].tolist()) for head in range(2)]
    return [set(row.topk(KEPT).indices.tolist()) for row in found]


def ours(driver: Driver, decode: bool) -> list[set[int]]:
    driver.feed(PROMPT)
    if decode:  # the prompt is compressed when a token follows
        driver.feed()
    return [set(row) - {PROMPT} for row in driver.held()]


PREFIX = {"last_queries": WINDOW, "recent": WINDOW, "sinks": 0, "pool": 5, "pool_over": "prefix", "capacity": KEPT}
RATIO = 1 - KEPT / PROMPT
#: Policy, its options, whether a token must follow, the press, and the share of positions on which they agree at least.
PAIRS: list[tuple[str, dict[str, Any], bool, Any, float]] = [
    ("streaming", {"sinks": 4, "window": KEPT - 4 + 1}, False, ("StreamingLLMPress", {"n_sink": 4}), 1.0),
    ("snapkv", PREFIX, True, ("SnapKVPress", {"window_size": WINDOW, "kernel_size": 5}), 1.0),
    ("ada_snapkv", {**PREFIX, "over_queries": "sum"}, True, ("AdaKVPress", {}), 1.0),
    ("tova", {"capacity": KEPT}, False, ("TOVAPress", {}), 0.95),
    ("h2o", {"heavy": KEPT - 1, "recent": 1}, False, ("ObservedAttentionPress", {}), 0.75),
]


@pytest.mark.parametrize(("name", "options", "decode", "press", "least"), PAIRS, ids=[pair[0] for pair in PAIRS])
def test_the_same_positions_are_kept(
    name: str, options: dict[str, Any], decode: bool, press: Any, least: float
) -> None:
    kind, settings = press
    agreed = total = 0
    for seed in range(SEEDS):
        driver = Driver(name, PROMPT + 1, seed=seed, **options)
        if kind == "AdaKVPress":
            made = kvpress.AdaKVPress(
                kvpress.SnapKVPress(compression_ratio=RATIO, window_size=WINDOW, kernel_size=5), alpha_safeguard=0.2
            )
        else:
            made = getattr(kvpress, kind)(compression_ratio=RATIO, **settings)
        theirs = presses_choice(made, driver)
        for own, other in zip(ours(driver, decode), theirs, strict=True):
            agreed += len(own & other)
            total += len(other)
    print(f"{name}: {agreed} of {total} positions, {agreed / total:.3f}")
    assert agreed >= least * total

from __future__ import annotations

from typing import Any

import pytest
import torch

import plait
from plait.errors import OptionError
from plait.policies import build
from policies.driver import Driver
from policies.tiny_models import decoder, generate, tokens


def test_prompts_by_one_policy_and_steps_by_the_other() -> None:
    combined = Driver(
        "prefill_decode",
        30,
        prefill={"name": "block_sparse", "block": 4, "top": 3},
        decode={"name": "quest", "page": 4, "budget": 8},
    )
    prefill, decode = Driver("block_sparse", 30, block=4, top=3), Driver("quest", 30, page=4, budget=8)
    torch.testing.assert_close(combined.feed(24), prefill.feed(24))
    decode.feed(24)
    for _ in range(6):
        torch.testing.assert_close(combined.feed(), decode.feed())
    assert combined.work("prefill").pairs == prefill.work("prefill").pairs
    assert combined.work("decode").pairs == decode.work("decode").pairs
    assert combined.work("decode").pairs < combined.work("decode").dense_pairs


def test_each_layer_its_own() -> None:
    """One dense and one narrow layer: pairs by layer say so; a single name everywhere is that policy."""
    model = decoder("llama")
    ids = tokens(1, 20)
    narrow = {"name": "streaming", "sinks": 1, "window": 3}
    with plait.policy(model, "per_layer", layers={"1": narrow}) as applied, torch.no_grad():
        model(ids)
        layers = applied.report().layers
    assert layers[0]["prefill"].pairs == 4 * 210
    assert layers[1]["prefill"].pairs == 4 * (1 + 2 + 3 + 17 * 4)
    with torch.no_grad():
        with plait.policy(model, "per_layer", layers={"0-1": narrow}):
            found = model(ids).logits
        with plait.policy(model, narrow):
            assert torch.equal(model(ids).logits, found)


def test_combinations_nest() -> None:
    model = decoder("plait")
    inner = {"name": "prefill_decode", "prefill": "dense", "decode": {"name": "streaming", "sinks": 1, "window": 5}}
    with plait.policy(model, "per_layer", layers={"0": inner}, otherwise="dense") as applied:
        generate(model, {"input_ids": tokens(1, 20)}, new=4)
        layers = applied.report().layers
    assert layers[0]["prefill"].pairs == layers[1]["prefill"].pairs == 4 * 210
    assert layers[0]["decode"].pairs == 4 * 3 * 6
    assert layers[1]["decode"].pairs == 4 * (21 + 22 + 23)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("prefill_decode", {"prefill": "snapkv"}, "memory of its own"),
        ("prefill_decode", {"decode": "duo_attention"}, "in its own way"),
        ("prefill_decode", {"decode": {"page": 4}}, "needs its name"),
        ("prefill_decode", {"decode": {"name": "quest", "pages": 4}}, "'page'"),
        ("per_layer", {"layers": {"first": "dense"}}, "names no layers"),
        ("per_layer", {"layers": {"4-2": "dense"}}, "names no layers"),
        ("per_layer", {"layers": {"1": "dense", "0-2": "dense"}}, "named twice"),
    ],
)
def test_combinations_that_make_no_sense(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build(name, **options)


def test_layers_that_the_model_does_not_have() -> None:
    with (
        pytest.raises(OptionError, match=r"no softmax layers \[2\]"),
        plait.policy(decoder("llama"), "per_layer", layers={"1-2": "dense"}),
    ):
        pass


def test_looking_ahead_comes_from_the_parts() -> None:
    assert build("prefill_decode").looks_ahead
    assert not build("prefill_decode", prefill="dense").looks_ahead
    assert build("per_layer", layers={"0": "block_sparse"}).looks_ahead
    assert not build("per_layer").looks_ahead

from __future__ import annotations

from typing import Any

import pytest
import torch

import plait
from plait import catalog
from plait.errors import CacheError, OptionError
from plait.policies import Policy, build
from plait.policies.combined import PrefillDecode
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


METHODS = catalog.names("policy", combines=False)


def small(name: str, length: int) -> dict[str, Any]:
    """The policy at a budget far below ``length``."""
    kind: type[Policy] = catalog.get(name, "policy").load()
    return {"name": name, **kind.with_budget(12, length)}


def alone(spec: dict[str, Any], length: int) -> Driver:
    return Driver(spec["name"], length, rows=2, padding=[5, 0], **{k: v for k, v in spec.items() if k != "name"})


def check_pair(first: dict[str, Any], second: dict[str, Any], policy: Policy | None = None) -> None:
    """A prompt is attended as by the first policy alone, the tokens after it as by the second alone.

    Queries, keys and values of a driver depend on no output, so each part must give what it gives alone.
    """
    length = 48
    if policy is None:
        policy = build("prefill_decode", prefill=first, decode=second)
    together = Driver(policy, length, rows=2, padding=[5, 0])
    before, after = alone(first, length), alone(second, length)
    torch.testing.assert_close(together.feed(36), before.feed(36))
    after.feed(36)
    for _ in range(6):
        before.feed()
        torch.testing.assert_close(together.feed(), after.feed())
    copy, others = (state.copy() for state in (together.state, after.state))
    rows = torch.tensor([1, 0, 0])
    for state, driver in ((copy, together), (others, after)):
        state.select_rows(rows)
        driver.state = state
        driver.q, driver.k, driver.v = (x[rows] for x in (driver.q, driver.k, driver.v))
        driver.padding = driver.padding[rows]
    torch.testing.assert_close(together.feed(), after.feed())


@pytest.mark.parametrize("second", METHODS)
@pytest.mark.parametrize("first", METHODS)
def test_any_two_go_together(first: str, second: str) -> None:
    check_pair(small(first, 48), small(second, 48))


@pytest.mark.parametrize("name", ["chunked", "head_budgets", "layer_budgets", "per_layer", "prefill_decode"])
def test_combinations_are_parts_too(name: str) -> None:
    check_pair(small(name, 48), small("snapkv", 48))
    check_pair(small("streaming", 48), small(name, 48))


def test_two_tables_of_one_policy() -> None:
    """Segments of one name, of different lengths, and two artefacts of one option."""
    table = {"name": "duo_attention", "sparsity": None, "sinks": 1, "recent": 4, "chunk": 6}
    first, second = ({**table, "heads": [heads]} for heads in ([1.0, 0.0], [0.0, 1.0]))
    check_pair(first, second)
    driver = Driver("prefill_decode", 48, prefill=first, decode=second)
    driver.feed(36)
    names = ("prefill.full", "prefill.streaming", "decode.full", "decode.streaming")
    assert set(driver.state.segments) == set(names)
    assert [driver.state[name].size for name in names] == [36, 5, 36, 5]


def test_a_prompt_after_the_answer_is_read_by_the_prefill_policy() -> None:
    """Its memory has seen what was decoded."""
    first, second = small("duo_attention", 48), small("tova", 48)
    together, before = (
        Driver("prefill_decode", 48, prefill=first, decode=second),
        Driver("duo_attention", 48, **{name: value for name, value in first.items() if name != "name"}),
    )
    for tokens_fed in (20, 1, 1):
        together.feed(tokens_fed)
        before.feed(tokens_fed)
    torch.testing.assert_close(together.feed(9), before.feed(9))


def test_one_memory_where_one_is_enough() -> None:
    """Vertical-Slash reads the keys that Quest keeps; a token that is gone is missed with a clear message."""
    driver = Driver("prefill_decode", 48, prefill=small("vertical_slash", 48), decode=small("quest", 48))
    assert set(driver.state.segments) == {"decode.kv", "decode.pages"}
    driver = Driver("prefill_decode", 48, prefill=small("vertical_slash", 48), decode=small("h2o", 48))
    driver.feed(30)
    with pytest.raises(CacheError, match="combine it with a decoding policy that evicts nothing"):
        driver.feed(10)


class OneName(PrefillDecode):
    """Both parts write into memory of the same names."""

    def attend(self, call: Any) -> Any:
        for name in [name for name in call.state.segments if name.startswith("prefill.")]:
            own = name.replace("prefill.", "decode.")
            call.state.segments[name] = call.state.segments.get(own, call.state.segments[name])
        return super().attend(call)


def test_the_check_of_pairs_sees_names_that_clash() -> None:
    first, second = small("snapkv", 48), {**small("snapkv", 48), "capacity": 9, "recent": 3}
    check_pair(first, second)
    options = PrefillDecode.Options(prefill=first, decode=second)
    with pytest.raises(AssertionError):
        check_pair(first, second, OneName(options))


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

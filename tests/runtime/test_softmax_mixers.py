"""Every softmax mixer of the catalogue says enough of itself to run under policies and probes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import plait
from plait import catalog
from plait.errors import OptionError
from plait.mixers.softmax_mixer import SoftmaxMixer
from plait.models import PlaitConfig, PlaitForCausalLM
from plait.models.cache import CACHE_NAME
from plait.policies import Dense
from plait.probes import probe
from policies.tiny_models import VOCABULARY, generate, left_padded, tokens

#: Layers that mix softmax attention with something else or keep its keys in another form, and the pairs of 20 tokens.
PLANS: dict[str, tuple[dict[str, Any], int]] = {
    "attention": ({"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "output_gate": True}, 210),
    "mla": (
        {"num_heads": 4, "kv_lora_rank": 12, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5},
        210,
    ),
    "lizard": ({"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "feature_dim": 8, "window": 6, "sinks": 3}, 105),
}


def model_of(name: str, **changes: Any) -> Any:
    torch.manual_seed(1)
    config: Any = PlaitConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        intermediate_size=48,
        layer_types=["gla", name],
        mixers={name: PLANS[name][0] | changes},
    )
    model = PlaitForCausalLM(config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
    return model.double().eval()


def stepwise(model: Any, ids: Tensor) -> Tensor:
    """A prompt of 12, a chunk of 4, the rest one by one."""
    out, parts = None, []
    with torch.no_grad():
        for piece in ids.split([12, 4, *[1] * (ids.shape[1] - 16)], dim=1):
            out = model(piece, use_cache=True, **({} if out is None else {CACHE_NAME: out[CACHE_NAME]}))
            parts.append(out.logits)
    return torch.cat(parts, dim=1)


def test_every_layer_that_sees_all_tokens_is_one() -> None:
    """A mixer that joins the catalogue as a full layer must run under policies too."""
    members = ("keys_in", "head_sizes", "queries_keys_values", "scoring", "visibility", "rotation", "finish")
    kinds = {name: catalog.get(name, "mixer").load() for name in catalog.names("mixer")}
    served = {name for name, kind in kinds.items() if all(hasattr(kind, member) for member in members)}
    assert served == set(PLANS) >= set(catalog.names("mixer", full=True))


@pytest.mark.parametrize("name", PLANS)
def test_dense_under_the_runtime_is_the_layer_itself(name: str) -> None:
    model, ids = model_of(name), tokens(2, 20)
    assert isinstance(model.model.layers[1].attn, SoftmaxMixer)
    expected = stepwise(model, ids)
    batch = left_padded([ids[0, :9], ids[1, :14]])
    said, best = generate(model, batch, new=4), generate(model, batch, new=4, num_beams=3)
    with plait.policy(model, Dense()) as applied:
        torch.testing.assert_close(stepwise(model, ids), expected, rtol=1e-7, atol=1e-9)
        assert applied.report().pairs == 2 * 4 * PLANS[name][1]
        assert torch.equal(generate(model, batch, new=4), said)
        assert torch.equal(generate(model, batch, new=4, num_beams=3), best)
    assert torch.equal(stepwise(model, ids), expected)


@pytest.mark.parametrize("name", ["attention", "mla"])
@pytest.mark.parametrize("policy", ["snapkv", "streaming", "quest"])
def test_a_policy_at_full_budget_is_the_model(name: str, policy: str) -> None:
    model, ids = model_of(name), tokens(2, 20)
    options = catalog.get(policy, "policy").load().with_budget(20, 20)
    expected = stepwise(model, ids)
    with plait.policy(model, policy, **options) as applied:
        torch.testing.assert_close(stepwise(model, ids), expected, rtol=1e-7, atol=1e-9)
        assert applied.report().served == (1,)
    few = catalog.get(policy, "policy").load().with_budget(6, 20)
    with plait.policy(model, policy, **few) as applied:
        assert not torch.allclose(stepwise(model, ids), expected)
        assert applied.report().share < 1


@pytest.mark.parametrize("name", ["attention", "mla"])
def test_raw_queries_and_keys_know_no_position(name: str) -> None:
    """The layer before mixes without positions, so the caller's own change nothing but the rotation."""
    model, ids, calls = model_of(name), tokens(1, 9), []

    class Listening(Dense):
        def attend(self, call: Any) -> Tensor:
            calls.append(call)
            return super().attend(call)

    with plait.policy(model, Listening()), torch.no_grad():
        model(ids)
        model(ids, position_ids=torch.arange(9)[None] + 5)
    for one, other, rotated in zip(*(call.raw() for call in calls), (calls[1].q, calls[1].k), strict=True):
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(calls[0].rotate(one, torch.arange(9)[None] + 5), rotated)
        assert not torch.allclose(one, rotated)


def test_a_window_of_its_own_is_no_business_of_a_policy() -> None:
    with pytest.raises(OptionError, match="window of their own"), plait.policy(model_of("lizard"), "streaming"):
        pass


@pytest.mark.parametrize("name", PLANS)
def test_probes_see_the_layer(name: str) -> None:
    model = model_of(name, **({"sinks": 0} if name == "lizard" else {}))
    growth = probe(model.float(), "logit_growth")
    growth.run(tokens(2, 20))
    assert set(growth.table()["layer"]) == {1}
    assert set(growth.table()["head"]) == {0, 1, 2, 3}

"""Which parameters decay, and the learning rate of every step."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from plait import catalog
from plait.errors import OptionError
from plait.models import PlaitConfig, PlaitForCausalLM
from plait.runs.config import TrainingSection
from plait.training.optimiser import (
    build_optimiser,
    build_schedule,
    drop_frozen_gradients,
    parameter_groups,
    rate_factor,
    set_rate,
    training_groups,
)

#: Parameters of a one-layer model that weight decay leaves alone, beyond the three norms of the decoder.
SPARED = {
    "attention": set(),
    "retnet": {"attn.g_norm_swish_gate.weight"},
    "hgrn": {"attn.g_norm.weight", "hgrn_lower_bounds"},
    "hgrn2": {"attn.g_norm.weight", "hgrn2_lower_bounds"},
    "gla": {"attn.gk_proj.1.bias", "attn.g_norm_swish_gate.weight"},
    "deltanet": {"attn.o_norm.weight"},
    "gated_deltanet": {"attn.A_log", "attn.dt_bias", "attn.o_norm.weight"},
    "lightning": {"attn.o_norm.weight", "attn.q_norm.weight", "attn.k_norm.weight"},
    "lizard": {"attn.gate", "attn.alpha", "attn.sink_logits"},
    "mla": {"attn.kv_a_norm.weight"},
    "kda": {"attn.A_log", "attn.dt_bias", "attn.o_norm.weight", "attn.g_proj.1.bias"},
}
DECODER_NORMS = {"attn_norm.weight", "mlp_norm.weight", "model.norm.weight"}


def short(name: str) -> str:
    for prefix in ("model.layers.0.", "model.shared.hgrn.", "model.shared.hgrn2."):
        name = name.removeprefix(prefix)
    return name


@pytest.mark.parametrize("mixer", SPARED)
def test_spared_parameters_are_exactly_these(mixer: str) -> None:
    with torch.device("meta"):
        model = PlaitForCausalLM(PlaitConfig(hidden_size=128, layer_types=[mixer]))
    decayed, left = parameter_groups(model)
    assert {short(name) for name in left} == SPARED[mixer] | DECODER_NORMS
    assert sorted(decayed + left) == sorted(name for name, _ in model.named_parameters())
    assert {"model.embeddings.weight", "lm_head.weight"} <= set(decayed)


def test_every_mixer_of_the_catalogue_is_in_the_table() -> None:
    assert set(SPARED) == set(catalog.names("mixer"))


def test_frozen_marked_and_tied_parameters() -> None:
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
    second.weight.requires_grad_(False)
    marked = nn.Linear(2, 2, bias=False)
    marked.weight._no_weight_decay = True  # type: ignore[assignment]
    tied = nn.Linear(2, 2, bias=False)
    tied.weight = first.weight
    model = nn.ModuleDict({"first": first, "second": second, "marked": marked, "tied": tied})
    assert parameter_groups(model) == (["first.weight"], ["second.bias", "marked.weight"])


def test_groups_reach_the_optimiser() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    training = TrainingSection(weight_decay=0.3, learning_rate=0.01, betas=(0.8, 0.9), epsilon=1e-7)
    groups = build_optimiser(model, training).param_groups
    assert [(g["weight_decay"], len(g["params"]), g["betas"], g["eps"]) for g in groups] == [
        (0.3, 1, (0.8, 0.9), 1e-7),
        (0.0, 3, (0.8, 0.9), 1e-7),
    ]
    assert groups[0]["params"][0] is model[0].weight


def test_rate_warms_up_and_falls_on_a_cosine() -> None:
    training = TrainingSection(steps=12, warmup_steps=4, final_fraction=0.2)
    factors = [rate_factor(step, training) for step in range(13)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[8] == pytest.approx(0.6)  # half-way between 1 and 0.2
    assert factors[12] == pytest.approx(0.2)
    assert all(a >= b for a, b in itertools.pairwise(factors[4:]))


@pytest.mark.parametrize("warmup", [0, 12, 50])
def test_rate_is_finite_without_and_with_nothing_but_warm_up(warmup: int) -> None:
    training = TrainingSection(steps=12, warmup_steps=warmup, learning_rate=0.5)
    optimiser = build_optimiser(nn.Linear(2, 2), training)
    schedule = build_schedule(optimiser, training)
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0.5 * (1 / warmup if warmup else 1))
    for _ in range(12):
        optimiser.step()
        schedule.step()
    assert 0 < optimiser.param_groups[0]["lr"] <= 0.5


RULES = [
    {"match": "*.attn.g_*", "rate": 0.1, "weight_decay": 0.0},
    {"match": "model.layers.0.*", "start": 2, "end": 4},
    {"match": "*embeddings*", "rate": 2.0},
]


def two_layers() -> PlaitForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 16, "vocab_size": 20}
    return PlaitForCausalLM(PlaitConfig(layer_types=["gated_deltanet", "attention"], **sizes))


def test_groups_by_pattern_are_exact_sets() -> None:
    model, training = two_layers(), TrainingSection(groups=RULES, weight_decay=0.3, learning_rate=0.01)
    names = {name for name, _ in model.named_parameters()}
    groups = training_groups(model, training)
    gate = {"model.layers.0.attn.g_proj.weight"}
    first = {name for name in names if name.startswith("model.layers.0.")} - gate
    spared = {name for name in names if name.endswith(("norm.weight", "A_log", "dt_bias"))}
    rest = names - gate - first - {"model.embeddings.weight"}
    assert [(set(g.names), g.weight_decay, g.rate, g.start, g.end) for g in groups] == [
        (rest - spared, 0.3, 1.0, 0, None),
        (rest & spared, 0.0, 1.0, 0, None),
        (gate, 0.0, 0.1, 0, None),
        (first - spared, 0.3, 1.0, 2, 4),
        (first & spared, 0.0, 1.0, 2, 4),
        ({"model.embeddings.weight"}, 0.3, 2.0, 0, None),
    ]
    assert sorted(name for group in groups for name in group.names) == sorted(names)
    optimiser = build_optimiser(model, training)
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([0.01, 0.01, 0.001, 0.01, 0.01, 0.02])
    schedule = build_schedule(optimiser, training)
    optimiser.step()
    schedule.step()
    expected = [group["lr"] for group in optimiser.param_groups]
    assert set_rate(optimiser, 1, training, groups) == pytest.approx(expected)
    with pytest.raises(OptionError, match=r"no trainable parameter that is left matches '\*codebook\*'"):
        training_groups(model, TrainingSection(groups=[{"match": "*codebook*"}]))


def test_frozen_groups_do_not_change_by_a_bit() -> None:
    """Frozen up to step 2 and again from step 4: neither gradients, nor decay, nor moments, nor clipping see them."""
    model, training = two_layers(), TrainingSection(groups=[{"match": "model.layers.0.*", "start": 2, "end": 4}])
    optimiser, groups = build_optimiser(model, training), training_groups(model, training)
    ids = torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(1))
    changed = []
    for step in range(6):
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        optimiser.zero_grad()
        model(ids, labels=ids).loss.backward()
        drop_frozen_gradients(model, groups, step)
        optimiser.step()
        changed.append({name for name, p in model.named_parameters() if not torch.equal(p, before[name])})
    first = {name for name in before if name.startswith("model.layers.0.")}
    for step, moved in enumerate(changed):
        assert moved == (set(before) if step in (2, 3) else set(before) - first), step

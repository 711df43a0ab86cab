"""Which parameters decay, and the learning rate of every step."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from plait import catalog
from plait.models import PlaitConfig, PlaitForCausalLM
from plait.runs.config import TrainingSection
from plait.training.optimiser import build_optimiser, build_schedule, parameter_groups, rate_factor

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

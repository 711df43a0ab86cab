"""Resolution of a grid: which trials, in which order, under which names."""

from __future__ import annotations

from typing import Any

import pytest

from plait import catalog
from plait.errors import OptionError
from plait.models import PlaitForCausalLM
from plait.models.architecture import build_model_config
from plait.study.file import parse_study
from plait.study.trials import Trial, trials

TRACKS = {
    "lm": {"kind": "lm", "data": {"corpus": "python-stdlib"}, "training": {"steps": 7}},
    "recall": {"kind": "recall", "data": {"task": "mqar"}, "seeds": [3]},
}


def resolve(**values: Any) -> list[Trial]:
    content = {
        "name": "s",
        "tracks": TRACKS,
        "grid": {"mixers": ["gla", "retnet"], "ratios": ["pure", "3:1"]},
        **values,
    }
    return trials(parse_study(content, "s.yaml"))


def test_grid_with_one_transformer_and_seeds_per_track() -> None:
    found = resolve(seeds=[0, 1])
    keys = ["transformer", "gla pure", "gla 3:1", "retnet pure", "retnet 3:1"]
    assert [t.key for t in found if t.track == "lm" and t.seed == 0] == keys
    assert [(t.key, t.seed) for t in found if t.track == "recall"] == [(key, 3) for key in keys]
    assert len(found) == 5 * 3
    assert len({t.hash for t in found}) == len(found)


def test_baseline_and_first_seed_come_first() -> None:
    found = resolve(seeds=[5, 4])
    assert [(t.track, t.key, t.seed) for t in found[:2]] == [("lm", "transformer", 5), ("recall", "transformer", 3)]
    assert [t.seed for t in found if t.track == "lm"] == [5] * 5 + [4] * 5


def test_track_overrides_base_and_nested_options_merge() -> None:
    base = {"model": {"mixers": {"gla": {"num_heads": 2}}}, "training": {"steps": 100, "batch_size": 3}}
    tracks = {"lm": {**TRACKS["lm"], "model": {"mixers": {"gla": {"expand_k": 1.0}}}}}
    found = {t.key: t.config for t in resolve(base=base, tracks=tracks)}
    assert found["gla pure"].training.steps == 7
    assert found["gla pure"].training.batch_size == 3
    assert found["gla pure"].model.mixers == {"gla": {"num_heads": 2, "expand_k": 1.0}}


def test_options_of_unused_mixers_do_not_change_a_trial() -> None:
    def hashes(heads: int) -> dict[str, str]:
        return {
            t.key: t.hash
            for t in resolve(base={"model": {"mixers": {"gla": {"num_heads": heads}}}}, tracks={"lm": TRACKS["lm"]})
        }

    before, after = hashes(2), hashes(4)
    assert {key for key in before if before[key] != after[key]} == {"gla pure", "gla 3:1"}


def test_hash_follows_the_config_and_not_the_study_name() -> None:
    first, renamed = resolve(), resolve(name="other")
    assert [t.hash for t in first] == [t.hash for t in renamed]
    assert first[0].config.name != renamed[0].config.name
    longer = resolve(base={"evaluate": {"limit": 5}})
    assert not {t.hash for t in first} & {t.hash for t in longer}
    unrotated = resolve(base={"model": {"mixers": {"attention": {"rope_base": None}}}})  # None is a value here
    assert not {t.hash for t in first} & {t.hash for t in unrotated}


def test_any_field_can_be_an_axis() -> None:
    grid = {
        "mixers": ["gla"],
        "ratios": ["pure"],
        "training.learning_rate": ["1e-3", 0.01],
        "model.mixers.gla.num_heads": [1, 2],
    }
    found = resolve(grid=grid, tracks={"lm": TRACKS["lm"]})
    gla = [t for t in found if t.key.startswith("gla")]
    assert [t.key for t in gla][:2] == [
        "gla pure learning_rate=0.001 num_heads=1",
        "gla pure learning_rate=0.001 num_heads=2",
    ]
    assert gla[0].fields == {"training.learning_rate": 0.001, "model.mixers.gla.num_heads": 1}
    assert gla[1].config.model.mixers["gla"]["num_heads"] == 2
    transformers = [t.key for t in found if t.key.startswith("transformer")]
    assert transformers == ["transformer learning_rate=0.001", "transformer learning_rate=0.01"]


def test_placement_splits_hybrids_only() -> None:
    grid = {"mixers": ["gla"], "ratios": ["pure", "3:1"], "model.placement": ["period_r", "block_r_plus_1"]}
    keys = [t.key for t in resolve(grid=grid, tracks={"lm": TRACKS["lm"]})]
    assert keys == ["transformer", "gla pure", "gla 3:1 placement=period_r", "gla 3:1 placement=block_r_plus_1"]


def test_explicit_layer_types_are_a_configuration() -> None:
    grid = {"model.layer_types": [["gla", "attention"], ["attention", "gla"]]}
    found = resolve(grid=grid, base={"model": {"num_hidden_layers": 2}}, tracks={"lm": TRACKS["lm"]})
    assert [t.key for t in found] == ["transformer", "gla+attention", "attention+gla"]


def test_exclude_and_overrides() -> None:
    found = resolve(
        exclude=[{"model.mixer": "retnet", "model.ratio": ["3:1"]}],
        overrides=[{"when": {"model.mixer": "retnet", "track": "lm"}, "set": {"training.learning_rate": 0.5}}],
    )
    assert "retnet 3:1" not in {t.key for t in found}
    assert {(t.key, t.track) for t in found if t.config.training.learning_rate == 0.5} == {("retnet pure", "lm")}


def test_equal_labels_are_an_error() -> None:
    grid = {"mixers": ["gla"], "ratios": ["pure"], "data.options.pairs": [2, "2"]}
    with pytest.raises(OptionError, match=r"both called .recall \| gla pure pairs=2"):
        resolve(grid=grid, tracks={"recall": TRACKS["recall"]}, transformer=False)


def test_grid_point_cannot_go_into_a_value() -> None:
    with pytest.raises(OptionError, match="'steps' holds a value"):
        resolve(grid={"mixers": ["gla"], "training.steps.more": [1]})


# ---- parameters that match


def parameters(trial: Trial) -> int:
    """Counted in the built model."""
    model = PlaitForCausalLM(build_model_config(trial.config, 300))
    return sum(parameter.numel() for parameter in model.parameters())


SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 100,
    "mixers": {"attention": {"num_kv_heads": 1}},
}


def test_matched_models_have_the_parameters_of_the_transformer() -> None:
    grid = {"mixers": ["gated_deltanet", "hgrn", "mamba2"], "ratios": ["pure", "3:1"]}
    grid["mixers"] = [name for name in grid["mixers"] if name in catalog.names("mixer")]
    tracks = {"lm": TRACKS["lm"]}
    plain = {t.key: t for t in resolve(base={"model": SIZES}, grid=grid, tracks=tracks)}
    found = {t.key: t for t in resolve(base={"model": SIZES}, grid=grid, tracks=tracks, match_parameters=True)}
    wanted = parameters(plain["transformer"])
    assert found["transformer"].hash == plain["transformer"].hash
    assert max(abs(parameters(trial) / wanted - 1) for trial in plain.values()) > 0.05
    for key, trial in found.items():
        assert abs(parameters(trial) / wanted - 1) <= 0.01, key
        assert trial.record()["model"]["intermediate_size"] == trial.config.model.intermediate_size


def test_each_point_matches_the_transformer_of_its_own_sizes() -> None:
    grid = {"mixers": ["gla"], "ratios": ["pure"], "model.hidden_size": [64, 128]}
    found = resolve(grid=grid, tracks={"lm": TRACKS["lm"]}, match_parameters=True, transformer=False)
    whole = resolve(grid=grid, tracks={"lm": TRACKS["lm"]})
    wanted = [parameters(trial) for trial in whole if trial.key.startswith("transformer")]
    assert [abs(parameters(trial) / one - 1) <= 0.01 for trial, one in zip(found, wanted, strict=True)] == [True, True]


def test_an_explicit_plan_matches_full_attention_of_its_depth() -> None:
    grid = {"model.layer_types": [["gla", "attention", "gla"]]}
    base = {"model": {"hidden_size": 64}}
    (found,) = resolve(grid=grid, base=base, tracks={"lm": TRACKS["lm"]}, match_parameters=True, transformer=False)
    sizes = {"hidden_size": 64, "num_hidden_layers": 3}
    full = resolve(
        grid={"ratios": ["full"], "mixers": ["attention"]}, base={"model": sizes}, tracks={"lm": TRACKS["lm"]}
    )
    assert abs(parameters(found) / parameters(full[0]) - 1) <= 0.01


def test_what_cannot_match_is_named_and_widths_are_not_set_twice() -> None:
    narrow = {"model": {**SIZES, "intermediate_size": 4, "mixers": {"gla": {"expand_v": 8.0}}}}
    with pytest.raises(OptionError, match=r"gla pure: match_parameters cannot bring this model within 1%.*exclude"):
        resolve(base=narrow, grid={"mixers": ["gla"], "ratios": ["pure"]}, match_parameters=True)
    with pytest.raises(OptionError, match=r"cannot set 'model\.hidden_ratio' as well"):
        resolve(grid={"mixers": ["gla"], "model.hidden_ratio": [2, 4]}, match_parameters=True)

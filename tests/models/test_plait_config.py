from __future__ import annotations

import copy
import json
import logging
from pathlib import Path

import pytest
from transformers import PreTrainedConfig

from plait.errors import OptionError
from plait.models import PlaitConfig


def test_defaults_are_a_hybrid() -> None:
    config = PlaitConfig()
    assert config.layer_types == ["gated_deltanet"] * 3 + ["attention"]
    assert config.num_hidden_layers == 4


def test_depth_follows_the_plan() -> None:
    assert PlaitConfig(layer_types=["gla"] * 7).num_hidden_layers == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_types": ["gla", "gated_delta"]}, r"layer_types\[1\]='gated_delta'.*Did you mean 'gated_deltanet'"),
        ({"layer_types": ["gla", 3]}, r"layer_types\[1\]=3 "),
        ({"layer_types": ["gla"], "num_hidden_layers": 2}, "1 entries but num_hidden_layers=2"),
        ({"hidden_sise": 3}, "Did you mean 'hidden_size'"),
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"hidden_size": 12.5}, "hidden_size=12.5"),
        ({"norm_eps": -1.0}, "norm_eps"),
        ({"mixers": {"gl": {}}}, r"mixers\['gl'\] is not a mixer.*'gla'"),
        ({"mixers": {"attention": {"windw": 3}}}, "Did you mean 'window'"),
        ({"mixers": {"attention": {"window": "far"}}}, "window='far'"),
        ({"mixers": {"local": {"mixer": "atention"}}}, "atention"),
        ({"mixers": {"a.b": {"mixer": "attention"}}}, "dot"),
        ({"mixers": {"attention": 3}}, "must map"),
    ],
)
def test_errors_name_the_place(options: dict, message: str) -> None:
    with pytest.raises((OptionError, TypeError), match=message):
        PlaitConfig(**options)


def test_two_settings_of_one_mixer() -> None:
    config = PlaitConfig(layer_types=["local", "attention"], mixers={"local": {"mixer": "attention", "window": 7}})
    local, full = config.layers()
    assert (local.mixer, local.options.window, full.options.window) == ("attention", 7, None)


def test_round_trip(tmp_path: Path) -> None:
    config = PlaitConfig(layer_types=["attention", "hgrn2"], mixers={"attention": {"window": 9}}, eos_token_id=3)
    config.save_pretrained(tmp_path)
    again = PlaitConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert again.layer_types == ["attention", "hgrn2"]  # transformers would rename "attention"
    assert copy.deepcopy(config).layer_types == config.layer_types
    assert PlaitConfig(**config.to_dict()).layers() == config.layers()


def test_foreign_keys_in_a_file_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    PlaitConfig().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "other_tool_version": 3}))
    with caplog.at_level(logging.WARNING, logger="plait"):
        PlaitConfig.from_pretrained(tmp_path)
    assert "other_tool_version" in caplog.text


def test_feed_forward_width() -> None:
    assert PlaitConfig(hidden_size=1024).mlp_size == 2816
    assert PlaitConfig(hidden_size=2048).mlp_size == 5632
    assert PlaitConfig(hidden_size=2048, intermediate_size=77).mlp_size == 77


def test_transformers_reads_the_file_without_plaits_class(tmp_path: Path) -> None:
    """As its Trainer does before it resumes."""
    config = PlaitConfig(layer_types=["hgrn", "local", "attention"], mixers={"local": {"mixer": "gla"}})
    config.save_pretrained(tmp_path)
    plain = PreTrainedConfig.from_json_file(tmp_path / "config.json")
    assert plain.layer_plan == ["hgrn", "local", "attention"]
    assert PlaitConfig.from_json_file(tmp_path / "config.json").layers() == config.layers()
    changed = PlaitConfig.from_pretrained(tmp_path, layer_types=["gla"], num_hidden_layers=1)
    assert changed.layer_types == ["gla"]
    with pytest.raises(OptionError, match="the same thing"):
        PlaitConfig(layer_types=["gla"], layer_plan=["hgrn"])


def test_sizes_of_softmax_attention_under_the_names_of_transformers(tmp_path: Path) -> None:
    mixers = {"attention": {"num_heads": 4, "num_kv_heads": 2}}
    config = PlaitConfig(layer_types=["gla", "attention"], mixers=mixers, hidden_size=64)
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    assert {name: getattr(config, name) for name in sizes} == sizes
    assert config.to_dict().items() >= sizes.items()
    config.save_pretrained(tmp_path)
    wider = {"attention": {"num_heads": 8, "num_kv_heads": 2}}
    assert PlaitConfig.from_pretrained(tmp_path, mixers=wider).num_attention_heads == 8
    with pytest.raises(OptionError, match=r"num_attention_heads=8 .*mixers \(4\)"):
        PlaitConfig(layer_types=["attention"], mixers=mixers, hidden_size=64, num_attention_heads=8)
    linear = PlaitConfig(layer_types=["gla"])
    assert not hasattr(linear, "num_attention_heads")
    assert "head_dim" not in linear.to_dict()

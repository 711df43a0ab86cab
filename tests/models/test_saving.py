"""Saved models come back bit by bit, by every door that users know."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, RepoUrl
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

import plait
from numerics import assert_same_outputs
from plait.errors import OptionError
from plait.models import PlaitConfig, PlaitForCausalLM, PlaitModel

PLAN = ("hgrn2", "attention", "gated_deltanet", "local")
LOCAL = {"local": {"mixer": "attention", "window": 3}}


def saved(build, folder: Path, **options) -> PlaitForCausalLM:
    model = build(*PLAN, mixers=LOCAL, **{"dtype": torch.float32, **options})
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_round_trip_is_bit_identical(build, tokens, tmp_path: Path, tied: bool) -> None:
    model = saved(build, tmp_path, tie_word_embeddings=tied)
    again = PlaitForCausalLM.from_pretrained(tmp_path)
    state, state_again = model.state_dict(), again.state_dict()
    assert list(state) == list(state_again)
    assert all(torch.equal(state[name], state_again[name]) for name in state)
    assert_same_outputs(again(tokens(2, 7)).logits, model(tokens(2, 7)).logits)
    assert (again.lm_head.weight is again.model.embeddings.weight) is tied
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not tied
    assert not again.training


def test_missing_weights_are_initialised_and_others_kept(build, tmp_path: Path) -> None:
    """A file without one of a mixer's own parameters does not disturb its neighbours."""
    model = saved(build, tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    missing = ["model.layers.2.attn.A_log", "model.layers.2.attn_norm.weight"]
    missing += [name for name in weights if name.startswith("model.shared.")]
    assert len(missing) == 3
    save_file({name: value for name, value in weights.items() if name not in missing}, file, {"format": "pt"})
    again = PlaitForCausalLM.from_pretrained(tmp_path)
    layer = again.model.layers[2]
    assert torch.equal(layer.attn.dt_bias, model.model.layers[2].attn.dt_bias)
    assert torch.isfinite(layer.attn.A_log).all()
    assert (layer.attn.A_log.exp() <= 16).all()
    assert not torch.equal(layer.attn.A_log, weights[missing[0]])
    assert torch.equal(layer.attn_norm.weight, torch.ones(16))
    assert not next(again.model.shared["hgrn2"].parameters()).any()


def test_reduced_precision(build, tokens, tmp_path: Path) -> None:
    model = saved(build, tmp_path)
    again = PlaitForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}
    exact = model(tokens(1, 7)).logits
    assert (again(tokens(1, 7)).logits - exact).abs().max() < 0.1 * exact.abs().max()


def test_auto_classes(build, tokens, tmp_path: Path) -> None:
    model = saved(build, tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), PlaitConfig)
    backbone = AutoModel.from_pretrained(tmp_path)
    assert isinstance(backbone, PlaitModel)
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path), PlaitForCausalLM)
    assert isinstance(AutoModelForCausalLM.from_config(model.config), PlaitForCausalLM)
    hidden = backbone(tokens(1, 5)).last_hidden_state
    assert_same_outputs(model.lm_head(hidden), model(tokens(1, 5)).logits)


def test_a_saved_folder_holds_no_copy_of_the_source(build, tmp_path: Path) -> None:
    """As transformers would make for classes that came through ``trust_remote_code``."""
    PlaitConfig.register_for_auto_class()
    PlaitForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    saved(build, tmp_path)
    assert [path.name for path in tmp_path.glob("*.py")] == ["plait_model.py"]
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForCausalLM"] == "plait_model.PlaitForCausalLM"
    assert auto_map["AutoConfig"] == "plait_model.PlaitConfig"


def test_auto_classes_where_plait_is_not_imported(build, tokens, tmp_path: Path) -> None:
    """A fresh process that knows only ``trust_remote_code``; what it saves is loadable again."""
    folder, again, modules = tmp_path / "model", tmp_path / "again", tmp_path / "modules"
    logits = saved(build, folder)(tokens(1, 5)).logits
    assert len((folder / "plait_model.py").read_text().splitlines()) == 2
    code = f"""
import json, torch
from transformers import AutoConfig, AutoModelForCausalLM
assert AutoConfig.from_pretrained({str(folder)!r}, trust_remote_code=True).model_type == "plait"
model = AutoModelForCausalLM.from_pretrained({str(folder)!r}, trust_remote_code=True)
assert type(model).__module__ == "plait.models.decoder"
model.save_pretrained({str(again)!r})
print(json.dumps(model(torch.tensor({tokens(1, 5).tolist()})).logits.tolist()))
"""
    environment = {**os.environ, "HF_MODULES_CACHE": str(modules)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), logits)
    assert sorted(path.name for path in again.glob("*.py")) == ["plait_model.py"]
    assert json.loads((again / "config.json").read_text())["auto_map"]["AutoModel"] == "plait_model.PlaitModel"
    assert_same_outputs(PlaitForCausalLM.from_pretrained(again)(tokens(1, 5)).logits, logits)


def test_push_to_hub_uploads_what_a_saved_folder_holds(build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: set[str] = set()

    def commit(self, repo_id: str, operations: list, **_: object) -> None:
        assert repo_id == "someone/tiny"
        uploaded.update(operation.path_in_repo for operation in operations)

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: RepoUrl(f"https://huggingface.co/{repo_id}"))
    monkeypatch.setattr(HfApi, "create_commit", commit)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *_, **__: ModelCard("---\n---\n"))
    model = saved(build, tmp_path)
    model.push_to_hub("someone/tiny")
    assert uploaded >= {path.name for path in tmp_path.iterdir()}


def test_load(build, tokens, tmp_path: Path) -> None:
    model = saved(build, tmp_path / "plain")
    loaded, tokenizer = plait.load(tmp_path / "plain")
    assert tokenizer is None
    assert_same_outputs(loaded(tokens(1, 5)).logits, model(tokens(1, 5)).logits)
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(tmp_path / "plain")
    _, tokenizer = plait.load(str(tmp_path / "plain"), dtype=torch.float64)
    assert tokenizer("b a c")["input_ids"] == [1, 0, 2]


def test_load_names_what_is_missing(build, tmp_path: Path) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    with pytest.raises(OptionError, match="models inside: model"):
        plait.load(tmp_path / "run")
    with pytest.raises(OptionError, match="no folder"):
        plait.load(tmp_path / "nothing")


def test_what_cannot_be_loaded_is_one_sentence(build, tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match="no folder nothing-here, and a model of that name cannot be downloaded"
    ) as found:
        plait.load("nothing-here")
    assert "\n" not in str(found.value)
    saved(build, tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(OptionError, match=f"{tmp_path}/cut/model.safetensors is damaged"):
        plait.load(tmp_path / "cut")
    (tmp_path / "cut" / "config.json").write_text('{"model_type": "not-known"}')
    with pytest.raises(OptionError, match="not-known"):
        plait.load(tmp_path / "cut")
    saved(build, tmp_path / "wrong")
    config = json.loads((tmp_path / "wrong" / "config.json").read_text())
    (tmp_path / "wrong" / "config.json").write_text(json.dumps(config | {"hidden_size": -1}))
    with pytest.raises(OptionError, match=r"^hidden_size=-1"):
        plait.load(tmp_path / "wrong")


def test_a_model_of_another_library_loads(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    assert isinstance(plait.load(tmp_path)[0], GPT2LMHeadModel)


def test_importing_plait_is_light() -> None:
    code = "import sys, plait; assert not {'torch', 'transformers'} & set(sys.modules); print(plait.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == plait.__version__
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        plait.laod  # noqa: B018

"""``plait export`` and ``plait import``: a model to another library's layout and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import plait
from numerics import assert_same_outputs
from plait.cli import app as front
from plait.models import PlaitConfig, PlaitForCausalLM

PLAN = ["gated_deltanet", "gated_deltanet", "attention"]


def run(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> str:
    with pytest.raises(SystemExit) as end:
        front.main(list(map(str, arguments)))
    assert end.value.code == status
    printed = capsys.readouterr()
    return printed.out if status == 0 else printed.err


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A hybrid with a tokenizer."""
    config = PlaitConfig(vocab_size=9, hidden_size=16, intermediate_size=24, layer_types=PLAN)
    PlaitForCausalLM(config).save_pretrained(tmp_path / "model")
    words = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_there_and_back(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported, imported = tmp_path / "fla", tmp_path / "again"
    written = json.loads(run(capsys, "export", saved, exported, "--to", "fla", "--json"))
    read = json.loads(run(capsys, "import", exported, imported, "--json"))
    model, _ = plait.load(saved)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert written["layers"] == read["layers"] == {"gated_deltanet": 2, "attention": 1}
    assert written["parameters"] == read["parameters"] == parameters
    assert (written["source"], written["target"], written["dtype"]) == (str(saved), str(exported), "float32")
    assert read["tokenizer_files"] == ["tokenizer.json", "tokenizer_config.json"]
    assert json.loads((exported / "config.json").read_text())["model_type"] == "gated_deltanet"
    again, tokenizer = plait.load(imported)
    assert tokenizer is not None
    assert tokenizer("a")["input_ids"] == [0]
    ids = torch.tensor([[1, 2, 3, 4]])
    assert_same_outputs(again(ids).logits, model(ids).logits)


def test_as_a_hybrid_of_transformers(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attention = {"num_heads": 2, "qk_norm": True, "output_gate": True}
    config = PlaitConfig(vocab_size=9, hidden_size=16, intermediate_size=24, layer_types=PLAN)
    config.mixers = {"attention": attention}
    PlaitForCausalLM(config).save_pretrained(saved)
    exported, imported = tmp_path / "qwen", tmp_path / "again"
    run(capsys, "export", saved, exported, "--to", "qwen3_next")
    read = json.loads(run(capsys, "import", exported, imported, "--json"))
    assert read["layers"] == {"gated_deltanet": 2, "attention": 1}
    assert read["tokenizer_files"] == ["tokenizer.json", "tokenizer_config.json"]
    assert json.loads((exported / "config.json").read_text())["model_type"] == "qwen3_next"
    (model, _), (again, tokenizer) = plait.load(saved), plait.load(imported)
    assert tokenizer is not None
    assert {name: tensor.tolist() for name, tensor in again.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in model.state_dict().items()
    }
    text = run(capsys, "export", saved, tmp_path / "llama", "--to", "llama", status=1)
    assert text.endswith("plait: layers 0-1 are gated_deltanet, but Llama has only attention.\n")


def test_text_names_layers_and_parameters(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fla").mkdir()  # an empty folder is as good as a new one
    text = run(capsys, "export", saved, tmp_path / "fla", "--to", "fla")
    assert "3: 2 gated_deltanet, 1 attention" in text
    assert "in float32" in text
    assert "tokenizer.json" in text
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "fla" / name).unlink()
    assert "tokenizer   none" in run(capsys, "import", tmp_path / "fla", tmp_path / "again")


def test_folders_that_hold_something_are_left_alone(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "export", saved, tmp_path / "fla", "--to", "fla")
    before = {path: path.read_bytes() for path in saved.iterdir()}
    for command in (["export", saved, saved, "--to", "fla"], ["import", tmp_path / "fla", saved]):
        assert f"{saved} is not empty" in run(capsys, *command, status=1)
    assert {path: path.read_bytes() for path in saved.iterdir()} == before
    assert "is a file" in run(capsys, "import", tmp_path / "fla", saved / "config.json", status=1)


def test_errors_are_one_sentence(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1)).save_pretrained(tmp_path / "gpt2")
    PlaitForCausalLM(PlaitConfig(hidden_size=16, layer_types=["gla", "hgrn"])).save_pretrained(tmp_path / "two")
    capsys.readouterr()
    for command, message in (
        (["import", tmp_path / "nothing", out], "There is no folder"),
        (["import", "nobody/nothing", out], "There is no folder nobody/nothing, and a model of that name"),
        (["import", saved, out], "model_type='plait' is not one of"),
        (["export", tmp_path / "nothing", out, "--to", "fla"], "There is no folder"),
        (["export", tmp_path / "gpt2", out, "--to", "fla"], "is a 'gpt2' model"),
        (["export", tmp_path / "two", out, "--to", "fla"], "'gla' and 'hgrn', but an fla file"),
    ):
        text = run(capsys, *command, status=1)
        assert text.startswith("plait: ")
        assert message in text
        assert text.count("\n") == 1
    assert not out.exists()
    run(capsys, "export", saved, out, status=2)
    run(capsys, "export", saved, out, "--to", "onnx", status=2)

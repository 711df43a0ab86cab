"""``plait explain``: layers, code path, parameters and cost from a configuration alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from plait import ops
from plait.cli import app as front
from plait.cli.explain import ratio_labels
from plait.models import PlaitCache, PlaitConfig, PlaitForCausalLM, full_layers, layer_plan, plan_cost

RUN = """
model: {hidden_size: 64, num_hidden_layers: 4, mixer: gla, ratio: "3:1", mixers: {gla: {num_heads: 2}}}
data: {DATA}
"""


def explain(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as end:
        front.main(["explain", *map(str, arguments)])
    assert end.value.code == 0
    return capsys.readouterr().out


def run_file(folder: Path, data: str = "corpus: python-stdlib") -> Path:
    path = folder / "run.yaml"
    path.write_text(RUN.replace("DATA", data))
    return path


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as end:
        front.main(["explain", *map(str, arguments)])
    assert end.value.code == 1
    return capsys.readouterr().err


def test_a_run_file_and_the_model_that_it_describes_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned = json.loads(explain(capsys, run_file(tmp_path), "--length", 50, "--json"))
    config = PlaitConfig(
        vocab_size=planned["vocab_size"],
        hidden_size=64,
        layer_types=layer_plan("gla", "3:1", 4),
        mixers={"gla": {"num_heads": 2}},
    )
    model = PlaitForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads(explain(capsys, tmp_path / "saved", "--length", 50, "--json"))
    assert planned["layers"] == saved["layers"]
    assert planned["totals"] == saved["totals"]
    assert saved["totals"]["parameters"] == sum(parameter.numel() for parameter in model.parameters())

    cache = PlaitCache(config)
    with torch.no_grad():
        model(torch.arange(50)[None], past_key_values=cache)
    assert saved["totals"]["state_bytes"] == cache.bytes() == plan_cost(config, 50).state_bytes
    assert sum(layer["flops_prefill"] for layer in saved["layers"]) == saved["totals"]["flops_prefill"]


def test_a_folder_of_a_run_is_read_at_any_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from plait.runs.config import load_run_config
    from plait.runs.folder import MODEL_FOLDER, write_run_file

    run = load_run_config(run_file(tmp_path))
    write_run_file(tmp_path, run)
    before = json.loads(explain(capsys, tmp_path, "--json"))
    config = PlaitConfig(vocab_size=17, hidden_size=32, layer_types=["gla"])
    config.save_pretrained(tmp_path / MODEL_FOLDER)
    after = json.loads(explain(capsys, tmp_path, "--json"))
    assert (before["hidden_size"], after["hidden_size"], after["vocab_size"]) == (64, 32, 17)


@pytest.mark.parametrize(
    ("data", "vocabulary"),
    [
        ("corpus: python-stdlib", 258),
        ('corpus: python-stdlib, tokenizer: "bpe:1000"', 1000),
        ("task: mqar, length: 32, options: {vocab_size: 64, pairs: 4}", 64),
    ],
)
def test_vocabulary_is_known_without_reading_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: str, vocabulary: int
) -> None:
    explained = json.loads(explain(capsys, run_file(tmp_path, data), "--json"))
    assert explained["vocab_size"] == vocabulary


def test_code_paths_are_those_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run_file(tmp_path)
    layers = json.loads(explain(capsys, path, "--device", "cpu", "--json"))["layers"]
    assert [layer["code_path"]["name"] for layer in layers] == [ops.choose("cpu")[0]] * 3 + ["sdpa"]
    with ops.backend("reference"):
        layers = json.loads(explain(capsys, path, "--device", "cpu", "--json"))["layers"]
    assert [layer["code_path"]["name"] for layer in layers] == ["reference"] * 3 + ["sdpa"]
    assert "active" in layers[0]["code_path"]["reason"]


def test_text_has_ratio_counts_options_and_totals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = explain(capsys, run_file(tmp_path))
    assert "ratio 3:1 (block_r_plus_1) or 4:1 (period_r): 3 linear, 1 full (layers 3)" in text
    assert "num_heads=2" in text
    rows = [line.split() for line in text.splitlines()]
    assert [row[1] for row in rows if row and row[0].isdigit()] == ["gla", "gla", "gla", "attention"]
    assert any(row[:1] == ["total"] for row in rows)


@pytest.mark.parametrize("layers", [4, 12, 24])
@pytest.mark.parametrize("placement", ["block_r_plus_1", "period_r"])
@pytest.mark.parametrize("ratio", ["2:1", "3:1", "6:1", "12:1", "24:1"])
def test_labels_name_the_plan_in_each_convention(ratio: str, placement: str, layers: int) -> None:
    linear = int(ratio.partition(":")[0])
    if linear + (placement == "block_r_plus_1") > layers:
        pytest.skip("this ratio does not fit this depth")
    labels = ratio_labels(full_layers(ratio, layers, placement), layers)
    assert f"{ratio} ({placement})" in labels
    for label in labels:
        other, _, convention = label.partition(" ")
        assert full_layers(other, layers, convention.strip("()")) == full_layers(ratio, layers, placement)


def test_labels_of_extreme_and_irregular_plans() -> None:
    assert ratio_labels([], 4) == ["pure"]
    assert ratio_labels([0, 1, 2, 3], 4) == ["full"]
    assert ratio_labels([0, 3], 4) == []
    assert ratio_labels([0], 4) == []


def test_a_place_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "neither a run's folder (run.json) nor a saved model" in fails(capsys, tmp_path)
    assert "There is no file" in fails(capsys, tmp_path / "absent.yaml")


def test_a_model_of_transformers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert "is a 'gpt2' model of transformers" in fails(capsys, tmp_path)
    (tmp_path / "config.json").write_text('{"colour": "red"}')
    assert "does not describe a model" in fails(capsys, tmp_path)

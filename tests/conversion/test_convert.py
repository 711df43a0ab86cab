"""``plait.convert`` and ``plait convert``: every stage, any order of breaks, one result that loads and generates."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from conversion.small import save_data, save_teacher, tokens
from plait.cli import app as front
from plait.conversion import adapters, convert
from plait.conversion.material import read_section, recall_and_language, settled
from plait.conversion.run import Conversion
from plait.errors import BackendUnavailable, OptionError, TrainingError
from plait.evaluation.results import by_name
from plait.fixtures import fixture_folder
from plait.models import PlaitForCausalLM
from plait.runs.config import DataSection
from plait.runs.metrics import read_metrics

SHORT = {"align_steps": 3, "distil_steps": 2, "tune_steps": 2, "batch_size": 2, "save_every": 2, "log_every": 1}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_data(folder)
    return save_teacher(folder / "teacher").parent


def run(llama: Path, out: Path, recipe: str = "halo", **arguments: Any) -> Conversion:
    options = {**SHORT, **arguments.pop("options", {})}
    given = {"ratio": "2:1", "select": "every", "data": llama / "data.yaml", "samples": 4, **arguments}
    return convert(llama / "teacher", recipe, out, options=options, **given)


@pytest.mark.parametrize(
    ("recipe", "options", "mixer"),
    [
        ("halo", {"mixer": "gated_deltanet"}, "gated_deltanet"),
        ("halo", {"mixer": "lightning", "lora_rank": 2}, "lightning"),
        ("lizard", {"distil_steps": 0, "feature_dim": 16, "window": 4}, "lizard"),
    ],
)
def test_result_loads_generates_and_reports(
    recipe: str, options: dict[str, Any], mixer: str, llama: Path, tmp_path: Path
) -> None:
    result = run(llama, tmp_path / "out", recipe, options=options)
    model, tokenizer = plait.load(tmp_path / "out")
    assert isinstance(model, PlaitForCausalLM)
    assert model.config.layer_types == [mixer, mixer, "attention"]
    assert result.kept == [2]
    assert tokenizer is not None
    words = model.generate(tokens(2, 5), max_new_tokens=4, do_sample=False)
    assert words.shape == (2, 9)
    stages = {stage["name"]: stage for stage in result.report["stages"]}
    trained = {"align": 3, "tune": 2} | ({"distil": 2} if recipe == "halo" else {})
    for name, steps in trained.items():
        assert stages[name]["steps"] == steps
        assert stages[name]["tokens"] == steps * 2 * 16
        assert len(read_metrics(tmp_path / "out" / "stages" / name)) == steps
        assert set(by_name(stages[name]["after"], "accuracy")) == {"mqar length=16"}
        assert all(value > 0 for value in by_name(stages[name]["after"], "bits per byte").values())
    assert ("merge" in stages) is (recipe == "lizard" or "lora_rank" in options)
    names = list(stages)
    for before, after in itertools.pairwise(names[1:]):
        assert stages[after]["before"] == stages[before]["after"]
    assert stages["transfer"]["before"] == result.report["teacher"]
    assert run(llama, tmp_path / "out", recipe, options=options).report == result.report


def test_stages_that_do_nothing_leave_the_teacher(llama: Path, tmp_path: Path) -> None:
    """With all layers kept and no training the logits are the teacher's, bit for bit."""
    run(llama, tmp_path / "out", "lizard", ratio="full", skip=["align", "distil", "tune"])
    teacher, _ = plait.load(llama / "teacher")
    student, _ = plait.load(tmp_path / "out")
    ids = tokens(2, 12)
    torch.testing.assert_close(student(ids).logits, teacher(ids).logits, rtol=0, atol=1e-6)


def test_skipped_stages(llama: Path, tmp_path: Path) -> None:
    result = run(llama, tmp_path / "pure", skip=["select", "distil", "tune"])
    assert result.kept == []
    assert [stage["name"] for stage in result.report["stages"]] == ["transfer", "align"]
    fresh = run(llama, tmp_path / "fresh", skip=["transfer", "align", "distil", "tune"])
    assert [stage["name"] for stage in fresh.report["stages"]] == ["select", "transfer"]
    model, _ = plait.load(tmp_path / "fresh")
    teacher, _ = plait.load(llama / "teacher")
    theirs = teacher.model.layers[0].self_attn.q_proj.weight
    assert not torch.equal(model.model.layers[0].attn.q_proj.weight, theirs)
    assert torch.equal(plait.load(tmp_path / "pure")[0].model.embeddings.weight, teacher.model.embed_tokens.weight)


def test_a_model_at_hand_stays_as_it_is(llama: Path, tmp_path: Path) -> None:
    """The result has its precision; it is not changed itself."""
    teacher, tokenizer = plait.load(llama / "teacher", dtype=torch.bfloat16)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    convert(
        teacher,
        "lizard",
        tmp_path / "out",
        data=llama / "data.yaml",
        skip=["align", "tune"],
        samples=2,
        tokenizer=tokenizer,
    )
    after = teacher.state_dict()
    assert all(torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items())
    model, _ = plait.load(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert model.config.layer_types == ["lizard"] * 3


def test_adapters_that_are_not_merged_stay_beside_the_model(llama: Path, tmp_path: Path) -> None:
    options = {"lora_rank": 2, "tune_steps": 3, "tune_rates": [0.05, 0.05]}
    run(llama, tmp_path / "merged", options=options)
    run(llama, tmp_path / "apart", options=options, skip=["merge"])
    merged, apart = (plait.load(tmp_path / name)[0] for name in ("merged", "apart"))
    ids = tokens(2, 12)
    assert not torch.allclose(apart(ids).logits, merged(ids).logits, atol=1e-3)
    found = adapters.merge(apart, tmp_path / "apart")
    torch.testing.assert_close(found(ids).logits, merged(ids).logits)


def test_layers_chosen_by_importance(llama: Path, tmp_path: Path) -> None:
    """The sweep comes after the alignment; kept layers are the teacher's, the others the aligned twins."""
    result = run(llama, tmp_path / "out", select="importance", skip=["distil", "tune"])
    names = [stage["name"] for stage in result.report["stages"]]
    assert names == ["transfer", "align", "select"]
    scores = result.report["importance"]
    assert len(scores) == 3
    assert result.kept == [scores.index(max(scores))]
    twins, _ = plait.load(tmp_path / "out" / "stages" / "align" / "model")
    assert "attention" not in twins.config.layer_types
    hybrid, _ = plait.load(tmp_path / "out")
    other = next(index for index in range(3) if index not in result.kept)
    for name, value in twins.model.layers[other].attn.state_dict().items():
        assert torch.equal(hybrid.model.layers[other].attn.state_dict()[name], value)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGKILL and fork are POSIX")
def test_killed_anywhere_ends_with_the_same_weights(llama: Path, tmp_path: Path) -> None:
    kills = ["align:4", "publish:align", "record:select", "distil:2", "tune:4"]
    for name in ("teacher", "data.yaml"):
        (tmp_path / name).symlink_to(llama / name)
    command = [sys.executable, str(Path(__file__).with_name("killed_conversion.py")), str(tmp_path), *kills]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [*(f"{kill} -9" for kill in kills), "end 0", "end 0"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    for stage, steps in (("align", 7), ("distil", 5), ("tune", 4)):
        found = read_metrics(broken / "stages" / stage)
        assert found == read_metrics(whole / "stages" / stage)
        assert len(found) == steps
    assert not list(tmp_path.rglob(".partial*"))


def test_a_folder_of_something_else(llama: Path, tmp_path: Path) -> None:
    run(llama, tmp_path / "out", skip=["align", "distil", "tune"])
    with pytest.raises(TrainingError, match=r"another conversion; different: options, skip"):
        run(llama, tmp_path / "out", options={"align_steps": 5}, skip=["distil", "tune"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    with pytest.raises(OptionError, match=r"is not empty and holds no conversion"):
        run(llama, tmp_path / "full")


def test_arguments_that_do_not_fit(llama: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ({"skip": ["aligned"]}, r"no stage 'aligned' to skip. Did you mean 'align'"),
        ({"data": None}, r"does not say what it was trained on"),
        ({"options": {"mixer": "gla"}}, r"mixer='gla'"),
        ({"ratio": "7:1"}, r"but the model has 3"),
        ({"layers": [3]}, r"indices run from 0 to 2"),
        ({"ratio": "full"}, r"would train nothing"),
    ):
        with pytest.raises(OptionError, match=message):
            run(llama, tmp_path / f"out{len(list(tmp_path.iterdir()))}", **arguments)
    with pytest.raises(OptionError, match=r"all the same softmax attention"):
        convert("fixture:recall-small-hybrid", "halo", tmp_path / "hybrid")


def test_adapters_need_peft(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: None if name == "peft" else util.find_spec(name))
    with pytest.raises(BackendUnavailable, match=r"pip install .*, or set lora_rank=0"):
        run(llama, tmp_path / "out", "lizard")
    assert not (tmp_path / "out").exists()


def test_data_as_files(llama: Path, tmp_path: Path) -> None:
    section = settled(read_section(llama / "data.yaml"))
    assert [(part.task, part.start) for part in section.mixture] == [("mqar", 0.0), (None, 0.0)]
    assert read_section(str(llama / "text.txt")) == DataSection(corpus=f"text:{llama / 'text.txt'}")
    assert read_section("python-stdlib") == DataSection(corpus="python-stdlib")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("data: {corpuss: python-stdlib}")
    with pytest.raises(OptionError, match=r"wrong.yaml: unknown key 'corpuss'"):
        read_section(wrong)


def test_command(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["convert", str(llama / "teacher"), str(out), "--recipe", "lizard", "--data", str(llama / "data.yaml")]
    words += ["--layers", "1", "--samples", "4", "--skip", "tune", "--set", "align_rates=[1e-3, 1e-4]"]
    for name in ("align_steps=2", "batch_size=2", "feature_dim=16"):
        words += ["--set", name]
    with pytest.raises(SystemExit) as end:
        front.main([*words, "--json"])
    captured = capsys.readouterr()
    assert end.value.code == 0, captured.err
    report = json.loads(captured.out)
    assert report["kept"] == [1]
    assert report["settings"]["options"]["align_rates"] == [1e-3, 1e-4]
    assert "align 2/2  loss" in captured.err
    with pytest.raises(SystemExit):
        front.main(words)
    assert "Layers that stay attention: 1. The model is in" in capsys.readouterr().out


def test_command_with_a_wrong_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        front.main(["convert", str(fixture_folder("recall-small")), str(tmp_path / "out"), "--set", "align_step=3"])
    assert end.value.code == 1
    assert "Did you mean 'align_steps'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_transformer_keeps_its_recall(tmp_path: Path) -> None:
    """160 steps on the shipped transformer: three of four layers become Gated DeltaNet, and most recall stays."""
    options = {"mixer": "gated_deltanet", "gate": "none", "hype": False, "align_steps": 160, "distil_steps": 0}
    options |= {"align_rates": [3e-3, 5e-4]}
    result = convert("fixture:recall-small", "halo", tmp_path / "out", select="every", options=options, samples=32)
    before, after = (recall_and_language(stage["after"])[0] for stage in result.report["stages"][1:])
    assert before is not None
    assert after is not None
    assert before < 0.1
    assert after > 0.7

"""``plait train``, ``eval`` and ``generate`` on a tiny run, as a user calls them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait.cli.app import main
from plait.cli.train import with_overrides
from plait.errors import OptionError
from plait.training.trainer import PlaitTrainer

Call = Callable[..., tuple[int, str, str]]

RUN = """
name: tiny
model: {hidden_size: 32, num_hidden_layers: 2, ratio: "1:1", intermediate_size: 32}
data: {corpus: "text:%s", length: 16}
training: {steps: 4, batch_size: 4, warmup_steps: 1, log_every: 2}
evaluate: {limit: 8, decode_contexts: [8]}
"""


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


@pytest.fixture
def run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{i} squared is {i * i}.\n" for i in range(500)), encoding="utf-8")
    path = tmp_path / "tiny.yaml"
    path.write_text(RUN % text, encoding="utf-8")
    return path


def test_train_eval_generate(call: Call, run_file: Path) -> None:
    status, out, err = call("train", str(run_file), "--set", "training.log_every=1")
    assert status == 0
    assert "bits per byte" in out
    assert "1 gated_deltanet + 1 attention (full at 1)" in err
    stored = json.loads(Path("runs/tiny/result.json").read_text())
    assert [step for step, _ in stored["train"]["losses"]] == [1, 2, 3, 4]

    status, out, _ = call("train", str(run_file), "--set", "training.log_every=1", "--json")
    assert status == 0
    again = json.loads(out)
    assert again["evaluation"]["results"][0]["scores"] == stored["evaluation"]["results"][0]["scores"]
    assert again["train"] == stored["train"]

    status, out, _ = call("eval", "runs/tiny", "--json")
    assert status == 0
    text, decoding = json.loads(out)["results"]
    assert text["scores"] == stored["evaluation"]["results"][0]["scores"]
    assert (text["trained"], decoding["trained"]) == (True, False)

    status, out, _ = call("eval", "runs/tiny/model", "--limit", "4", "--json")
    assert json.loads(out)["results"][0]["scores"][1]["more"]["tokens"] == 4 * 16
    status, out, _ = call("eval", "runs/tiny/model", "--contexts", "4,8", "--json")
    assert [one["settings"]["context"] for one in json.loads(out)["results"]] == [4, 8]

    texts = {}
    for name, options in {"a": ["--seed", "1"], "b": ["--seed", "1"], "c": ["--seed", "2"], "g": ["--greedy"]}.items():
        arguments = ["generate", "runs/tiny", "--prompt", "12 sq", "--max-new-tokens", "12", *options]
        status, texts[name], err = call(*arguments)
        assert status == 0
        assert texts[name].strip()
        assert "12 sq" not in texts[name]
        assert "prefill" in err
    assert texts["a"] == texts["b"] != texts["c"]
    status, out, err = call(*arguments, "--echo", "--quiet")
    assert (out, err) == ("12 sq" + texts["g"], "")
    status, out, err = call(*arguments, "--json")
    assert json.loads(out)["text"] + "\n" == texts["g"]

    status, _, err = call("eval", "runs/tiny", "--option", "pairs=2")
    assert (status, "no task is learnt" in err) == (1, True)
    status, _, err = call("train", str(run_file), "--set", "model.ratio=pure")
    assert status == 1
    assert "model.ratio (there '1:1', here 'pure')" in err


def test_interrupted_training_says_how_to_go_on(call: Call, run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = PlaitTrainer.training_step

    def interrupted(self: PlaitTrainer, *args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args)

    monkeypatch.setattr(PlaitTrainer, "training_step", interrupted)
    status, out, err = call("train", str(run_file), "--out", "elsewhere")
    assert (status, out) == (130, "")
    assert "Stopped at step 1; a checkpoint is in elsewhere" in err
    status, _, err = call("eval", "elsewhere")
    assert status == 1
    assert "has not finished: use its last checkpoint, elsewhere/checkpoint-1" in err
    monkeypatch.undo()
    monkeypatch.chdir(run_file.parent)
    status, _, err = call("train", str(run_file), "--out", "elsewhere")
    assert status == 0
    assert "going on from checkpoint-1" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "absent.yaml"], "There is no file absent.yaml"),
        (
            ["train", "tiny.yaml", "--set", "training.step=3"],
            "there is no key 'training.step'. Did you mean 'training.steps'",
        ),
        (["train", "tiny.yaml", "--set", "model.ratio=3"], "model.ratio = 3"),
        (
            ["train", "tiny.yaml", "--set", "model.mixer=hgrm"],
            "model.mixer = 'hgrm' is not a mixer. Did you mean 'hgrn'",
        ),
        (["eval", "nothing-here"], "no folder nothing-here"),
        (["train", "tiny.yaml", "--set", "model.ratio=4:1"], "ratio='4:1'"),
        (["eval", "absent/folder/x"], "There is no folder absent/folder/x"),
        (["eval", ".", "--contexts", "12,a"], "--contexts '12,a'"),
        (["eval", ".", "--suite", "recal"], "Did you mean 'recall'"),
        (["generate", ".", "--greedy", "--top-k", "3"], "--greedy takes no --top-k"),
        (["generate", ".", "--temperature", "0"], "use --greedy"),
        (["generate", ".", "--top-p", "1.5"], "--top-p 1.5"),
    ],
)
def test_mistakes_are_one_sentence(call: Call, run_file: Path, arguments: list[str], message: str) -> None:
    status, out, err = call(*arguments)
    assert (status, out) == (1, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not Path("runs").exists() or not list(Path("runs").glob("*/checkpoint-*"))


def test_overrides_are_json_or_text() -> None:
    values: dict[str, Any] = {}
    with_overrides(values, ["model.mixers={gla: {num_heads: 2}}", "training.report_to=[wandb]", "name=[open"])
    assert values == {
        "model": {"mixers": {"gla": {"num_heads": 2}}},
        "training": {"report_to": ["wandb"]},
        "name": "[open",
    }
    values = {"training": {"steps": 5}}
    with_overrides(values, ["training.steps=7", "model.ratio=3:1", "evaluate.decode_contexts=[1, 2]", "name=a=b"])
    assert values == {
        "training": {"steps": 7},
        "model": {"ratio": "3:1"},
        "evaluate": {"decode_contexts": [1, 2]},
        "name": "a=b",
    }
    for wrong in ("training.steps", "=3", "training.steps.more=3"):
        with pytest.raises(OptionError, match="--set"):
            with_overrides(values, [wrong])

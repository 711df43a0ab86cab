"""From a run file to the dictionary that studies and reports read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plait.errors import DataError, OptionError
from plait.evaluation.run import train_and_evaluate
from plait.runs.config import RunConfig

MODEL = {"hidden_size": 32, "num_hidden_layers": 2, "ratio": "1:1", "intermediate_size": 32}
TRAINING = {"steps": 3, "batch_size": 4, "warmup_steps": 1, "log_every": 1}
MQAR = {"task": "mqar", "length": 16, "options": {"vocab_size": 32, "pairs": 2}}


def run_config(data: dict[str, Any], **evaluate: Any) -> RunConfig:
    return RunConfig.model_validate({"model": MODEL, "data": data, "training": TRAINING, "evaluate": evaluate})


@pytest.fixture
def text(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{i} squared is {i * i}.\n" for i in range(500)), encoding="utf-8")
    return {"corpus": f"text:{path}", "length": 16}


def test_text(text: dict[str, Any], tmp_path: Path) -> None:
    config = run_config(text, limit=12, decode_contexts=[8], ar_hits_rare_below=1000)
    result = train_and_evaluate(config, tmp_path / "run", progress=False)
    assert set(result) == {"config", "evaluation", "train", "versions", "machine", "commit", "seed"}
    assert RunConfig.model_validate(result["config"]) == config
    assert [step for step, _ in result["train"]["losses"]] == [1, 2, 3]
    assert result["train"]["tokens"] == 3 * 4 * 16
    evaluation = result["evaluation"]
    assert set(evaluation) == {"parameters", "results", "unavailable"}
    held_out, decoding = evaluation["results"]
    assert (held_out["kind"], held_out["trained"]) == ("text", True)
    bits, loss, *_ = held_out["scores"]
    assert (bits["n"], loss["more"]["tokens"]) == (12, 12 * 16)
    assert {"gzip", "xz", "ngram"} <= set(bits["more"]["baselines"])
    assert (decoding["kind"], decoding["trained"], decoding["settings"]) == ("decode", False, {"context": 8})
    assert [score["unit"] for score in decoding["scores"]] == ["tokens/s", "bytes"]
    json.dumps(result, allow_nan=False)
    again = train_and_evaluate(config, tmp_path / "run", progress=False)
    assert again["train"] == result["train"]
    assert again["evaluation"]["results"][0]["scores"] == held_out["scores"]


def test_task(tmp_path: Path) -> None:
    config = run_config(MQAR, settings=[{"length": 32, "pairs": 4}], limit=6, measure=[{"suite": "recall", "limit": 3}])
    evaluation = train_and_evaluate(config, tmp_path, progress=False)["evaluation"]
    trained, *further = evaluation["results"]
    assert (trained["name"], trained["trained"]) == ("mqar length=32 pairs=4", True)
    assert trained["scores"][0]["n"] == 6
    assert {one["name"].split()[0] for one in further} == {"mqar", "niah", "key_value"}
    assert not any(one["trained"] for one in further)
    reasons = {one["name"]: one["reason"] for one in evaluation["unavailable"]}
    assert "no tokenizer" in reasons["passkey"]


def test_an_evaluation_that_cannot_be_is_found_before_training(text: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no task is learnt"):
        train_and_evaluate(run_config(text, settings=[{"length": 32, "pairs": 4}]), tmp_path / "text", progress=False)
    with pytest.raises(DataError, match="too short"):
        train_and_evaluate(run_config(MQAR, settings=[{"length": 8, "pairs": 4}]), tmp_path / "mqar", progress=False)
    assert not list(tmp_path.glob("*/checkpoint-*"))

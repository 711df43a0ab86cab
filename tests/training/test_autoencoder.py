"""A run of a task that needs an auto-encoder: trained, saved and read back as one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from plait.data import build
from plait.errors import OptionError
from plait.evaluation.run import train_and_evaluate
from plait.models import PlaitForCausalLM, load
from plait.models.heads import AutoencoderForCompression
from plait.runs.config import RunConfig
from plait.training.runner import build_model

COMPRESSION = {"task": "mad_compression", "options": {"vocab_size": 4, "length": 4}}


def test_training(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = run_config(data=COMPRESSION, accumulate=2, validate_every=4)
    result = train_and_evaluate(config, tmp_path / "run", progress=False)
    model, _ = load(tmp_path / "run" / "model")
    assert type(model) is AutoencoderForCompression
    assert len(result["train"]["losses"]) == 4
    ids = torch.tensor([[0, 1, 2, 3]])
    untrained = build_model(config, build(config.data, tmp_path, config.seed)).eval()
    assert (model(ids).logits != untrained(ids).logits).any()


def test_the_task_decides_the_model(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    def kind(**data: object) -> type:
        config = run_config(data=data)
        return type(build_model(config, build(config.data, tmp_path, 0)))

    parity = {"task": "parity", "options": {"length": 8}}
    assert kind(**COMPRESSION) is AutoencoderForCompression
    assert kind(**parity) is PlaitForCausalLM
    assert kind(mixture=[COMPRESSION, COMPRESSION]) is AutoencoderForCompression
    assert kind(mixture=[parity, parity]) is PlaitForCausalLM
    with pytest.raises(OptionError, match="cannot be mixed with another kind"):
        kind(mixture=[COMPRESSION, parity])

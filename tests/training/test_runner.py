"""A run ends with the same weights however it came there, and says what is wrong when it cannot go on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

import plait
from plait.data.tasks import TaskDataset
from plait.errors import BackendUnavailable, OptionError, TrainingError
from plait.files.writing import read_back
from plait.models import PlaitForCausalLM
from plait.models.architecture import build_model_config
from plait.runs.checkpoint import checkpoints
from plait.runs.metrics import losses, read_metrics
from plait.training import RunConfig, runner
from plait.training.runner import Interrupted, resolved_precision, train
from plait.training.trainer import PlaitTrainer

Make = Callable[..., RunConfig]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Call ``act`` in the middle of this step, before its gradient is applied."""
    original = PlaitTrainer.training_step

    def training_step(self: PlaitTrainer, *args: Any) -> Tensor:
        if self.state.global_step + 1 == step:
            act()
        return original(self, *args)

    monkeypatch.setattr(PlaitTrainer, "training_step", training_step)


def crash(*_: Any, **__: Any) -> None:
    raise MemoryError


def crashed_run(monkeypatch: pytest.MonkeyPatch, config: RunConfig, folder: Path, step: int) -> None:
    """Train, and crash in the middle of this step."""
    with monkeypatch.context() as patch:
        stop_after(patch, step, crash)
        with pytest.raises(MemoryError):
            train(config, folder, progress=False)


def test_a_run_leaves_model_metrics_and_checkpoints(run_config: Make, text_file: Path, tmp_path: Path) -> None:
    config = run_config(data={"corpus": f"text:{text_file}", "length": 16}, validate_every=4, keep=1)
    result = train(config, tmp_path / "run", progress=False)
    assert (result.steps, result.tokens) == (8, 8 * 4 * 16)
    assert [step for step, _ in result.losses] == [2, 4, 6, 8]
    assert result.losses[-1][1] < result.losses[0][1]
    records = read_metrics(tmp_path / "run")
    assert [r["step"] for r in records if "validation_loss" in r] == [4, 8]
    assert set(records[0]) == {"step", "loss", "lr", "grad_norm", "tokens_per_second"}
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-8"]
    model, tokenizer = plait.load(result.model_folder)
    assert result.parameters == model.num_parameters()
    assert model.config.use_cache
    assert tokenizer is not None
    for folder in (result.model_folder, tmp_path / "run" / "checkpoint-8"):
        assert AutoTokenizer.from_pretrained(folder).decode(tokenizer("Line 7").input_ids) == "Line 7"
        assert read_back(folder / "run.json")["config"] == config.model_dump(mode="json")


def test_a_finished_run_returns_at_once(run_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(run_config(steps=2), tmp_path, progress=False)
    monkeypatch.setattr(PlaitTrainer, "__init__", crash)
    assert train(run_config(steps=2), tmp_path, progress=False) == first


@pytest.mark.parametrize(("step", "start"), [(3, 0), (6, 4), (8, 4)])
def test_resumed_equals_uninterrupted(
    run_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, start: int
) -> None:
    """2N steps == N steps, crash, resume; save_every is no multiple of log_every, so a window is cut in two."""
    config = run_config(log_every=3, accumulate=2)
    train(config, tmp_path / "whole", progress=False)
    crashed_run(monkeypatch, config, tmp_path / "broken", step)
    assert [path.name for path in checkpoints(tmp_path / "broken")] == ([f"checkpoint-{start}"] if start else [])
    said: list[str] = []
    result = train(config, tmp_path / "broken", progress=False, announce=said.append)
    assert (f"going on from checkpoint-{start}" in said) == bool(start)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")
    assert result.tokens == 8 * 2 * 4 * 16


def test_rows_come_in_order_and_none_is_replayed(
    run_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    rows = TaskDataset.__getitems__

    def spy(self: TaskDataset, indices: list[int]) -> Any:
        read.extend(indices)
        return rows(self, indices)

    monkeypatch.setattr(TaskDataset, "__getitems__", spy)
    crashed_run(monkeypatch, run_config(), tmp_path, 6)
    assert read[: 6 * 4] == list(range(6 * 4))
    read.clear()
    train(run_config(), tmp_path, progress=False)
    assert read == list(range(4 * 4, 8 * 4))


def test_random_state_is_part_of_a_checkpoint(
    run_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = runner.build_model

    def noisy(*args: Any) -> PlaitForCausalLM:
        model = build(*args)
        model.model.embeddings.register_forward_hook(lambda _, __, output: output + 0.1 * torch.randn_like(output))
        return model

    monkeypatch.setattr(runner, "build_model", noisy)
    config = run_config()
    train(config, tmp_path / "whole", progress=False)
    crashed_run(monkeypatch, config, tmp_path / "broken", 7)
    torch.manual_seed(123)
    train(config, tmp_path / "broken", progress=False)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))


def test_a_run_killed_between_its_last_step_and_its_model_only_saves(
    run_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(runner, "_save_model", crash)
        with pytest.raises(MemoryError):
            train(run_config(), tmp_path, progress=False)
    stop_after(monkeypatch, 9, crash)
    result = train(run_config(), tmp_path, progress=False)
    assert result.steps == 8
    assert (result.model_folder / "model.safetensors").exists()


def test_the_seed_decides_everything(run_config: Make, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(ord(name))  # what happened before in the process does not matter
        train(run_config(steps=2, seed=seed), tmp_path / name, progress=False)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_accumulated_batches_equal_one_large_batch(run_config: Make, tmp_path: Path) -> None:
    """Rows have unequal numbers of targets, so a mean of the batches' means would differ."""
    options = {"vocab_size": 32, "mixture": [[16, 1], [16, 4]]}
    data = {"task": "mqar", "length": 16, "options": options}
    large = train(run_config(data=data, steps=3, batch_size=512, log_every=1), tmp_path / "large", progress=False)
    split = train(
        run_config(data=data, steps=3, batch_size=256, accumulate=2, log_every=1), tmp_path / "split", progress=False
    )
    assert [loss for _, loss in split.losses] == pytest.approx([loss for _, loss in large.losses], rel=1e-5)


def test_gradient_checkpointing_changes_nothing(run_config: Make, tmp_path: Path) -> None:
    for name, on in (("plain", False), ("recomputed", True)):
        train(run_config(steps=3, gradient_checkpointing=on), tmp_path / name, progress=False)
    plain, recomputed = weights(tmp_path / "plain"), weights(tmp_path / "recomputed")
    assert all(torch.allclose(plain[name], recomputed[name], atol=1e-6) for name in plain)


def test_separate_documents_reach_the_model_as_borders(
    run_config: Make, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    forward = PlaitForCausalLM.forward

    def spy(self: PlaitForCausalLM, **inputs: Any) -> Any:
        seen.append(inputs["cu_seqlens"])
        assert inputs["input_ids"].shape == (1, 64)
        return forward(self, **inputs)

    monkeypatch.setattr(PlaitForCausalLM, "forward", spy)
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(400):
        (folder / f"{i}.txt").write_text(f"{i} and {i * i}")
    config = run_config(data={"corpus": f"text:{folder}", "length": 16, "documents": "separate"}, steps=1)
    train(config, tmp_path / "run", progress=False)
    borders = seen[0].tolist()
    assert borders[0] == 0
    assert borders[-1] == 64
    assert {16, 32, 48} < set(borders)


def test_bf16_keeps_fp32_weights(run_config: Make, tmp_path: Path) -> None:
    result = train(run_config(precision="bf16", steps=2), tmp_path, progress=False)
    assert {value.dtype for value in weights(result.folder).values()} == {torch.float32}


def test_auto_precision_is_fp32_without_a_gpu(run_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolved_precision(run_config(precision="auto").training) == "fp32"


@pytest.mark.parametrize(("what", "word"), [("loss", "loss is nan"), ("gradient", "gradient norm is ")])
def test_a_number_that_is_not_finite_stops_the_run(
    run_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, word: str
) -> None:
    compute = PlaitTrainer.compute_loss

    def broken(self: PlaitTrainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = compute(self, model, inputs, *args, **kwargs)
        if self.state.global_step + 1 < 6:
            return loss
        if what == "loss":
            return loss * float("nan")
        loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    monkeypatch.setattr(PlaitTrainer, "compute_loss", broken)
    with pytest.raises(TrainingError) as error:
        train(run_config(), tmp_path, progress=False)
    message = str(error.value)
    assert message.startswith(f"Step 6: the {word}")
    assert "checkpoint-4" in message
    assert "lower learning rate (now 0.003)" in message
    monkeypatch.undo()
    saved = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert all(value.isfinite().all() for value in saved.values())


def test_a_folder_of_another_run_is_refused(run_config: Make, tmp_path: Path) -> None:
    train(run_config(steps=2), tmp_path, progress=False)
    with pytest.raises(TrainingError) as error:
        train(run_config(steps=2, learning_rate=0.1, model={"ratio": "pure"}), tmp_path, progress=False)
    message = str(error.value)
    assert "training.learning_rate (there 0.003, here 0.1)" in message
    assert "model.ratio (there '1:1', here 'pure')" in message
    assert "batch_size" not in message
    train(run_config(steps=2, keep=5, log_every=1), tmp_path, progress=False)  # these do not touch the weights


def test_checkpoints_of_unknown_origin_are_refused(run_config: Make, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(TrainingError, match=r"no run\.json"):
        train(run_config(), tmp_path, progress=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_saves_and_the_same_call_goes_on(
    run_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        stop_after(patch, 3, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Interrupted, match="Stopped at step 3") as stop:
            train(run_config(), tmp_path / "broken", progress=False)
    assert stop.value.step == 3
    assert signal.getsignal(number) is handler
    assert [path.name for path in checkpoints(tmp_path / "broken")] == ["checkpoint-3"]
    train(run_config(), tmp_path / "broken", progress=False)
    train(run_config(), tmp_path / "whole", progress=False)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))


def test_a_second_interruption_stops_at_once(run_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    stop_after(monkeypatch, 3, twice)
    with pytest.raises(KeyboardInterrupt) as stop:
        train(run_config(), tmp_path, progress=False)
    assert not isinstance(stop.value, Interrupted)
    assert checkpoints(tmp_path) == []


def test_trackers_that_are_absent_or_unknown(run_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plait.training.trackers.find_spec", lambda _: None)
    with pytest.raises(BackendUnavailable, match="pip install wandb"):
        train(run_config(report_to=["wandb"]), tmp_path, progress=False)
    with pytest.raises(OptionError, match="Did you mean 'tensorboard'"):
        train(run_config(report_to=["tensorbord"]), tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_console_stays_quiet_but_for_the_progress(
    run_config: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    level = transformers_logging.get_verbosity()
    train(run_config(steps=2), tmp_path / "silent", progress=False)
    assert capfd.readouterr() == ("", "")
    train(run_config(steps=2), tmp_path / "shown", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("step 2/2  loss ")
    assert "tokens/s" in err
    assert len(err.splitlines()) == 1
    assert transformers_logging.get_verbosity() == level
    assert transformers_logging.is_progress_bar_enabled()


def test_model_config_follows_the_run_file(run_config: Make) -> None:
    plan = build_model_config(run_config(model={"num_hidden_layers": 4, "ratio": "3:1"}), 100)
    assert plan.layer_types == ["gated_deltanet"] * 3 + ["attention"]
    assert (plan.vocab_size, plan.hidden_size, plan.intermediate_size) == (100, 32, 32)
    window = {"window": {"mixer": "attention", "window": 8}}
    explicit = build_model_config(run_config(model={"layer_types": ["hgrn", "window", "gla"], "mixers": window}), 50)
    assert explicit.layer_types == ["hgrn", "window", "gla"]
    assert explicit.num_hidden_layers == 3
    with pytest.raises(OptionError, match="num_head"):
        build_model_config(run_config(model={"mixers": {"attention": {"num_headz": 2}}}), 50)

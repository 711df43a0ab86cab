"""More steps for a run, weights of another model as its start, and resumption from weights at any address."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from plait.errors import FolderInUse, OptionError, TrainingError
from plait.files.locks import sole_writer
from plait.files.writing import read_back
from plait.models import load
from plait.models.alignment import ALIGNMENT, align_weights, aligned
from plait.runs.checkpoint import checkpoints
from plait.runs.metrics import losses, read_metrics
from plait.training import RunConfig, sharding
from plait.training.runner import train
from plait.training.trainer import PlaitTrainer

Make = Callable[..., RunConfig]
MODEL = Path("model") / "model.safetensors"


def test_raised_steps_equal_a_run_that_had_them_where_the_rate_is_constant(run_config: Make, tmp_path: Path) -> None:
    train(run_config(steps=10, final_fraction=1.0), tmp_path / "long", progress=False)
    train(run_config(steps=6, final_fraction=1.0), tmp_path / "raised", progress=False)
    said: list[str] = []
    result = train(run_config(steps=10, final_fraction=1.0), tmp_path / "raised", progress=False, announce=said.append)
    assert result.steps == 10
    assert said[-2:] == [
        "going on from checkpoint-6",
        "steps raised from 6 to 10: the rate of the next step is 0.003 instead of 0.003",
    ]
    assert (tmp_path / "raised" / MODEL).read_bytes() == (tmp_path / "long" / MODEL).read_bytes()
    record = read_back(tmp_path / "raised" / "run.json")
    assert record["config"]["training"]["steps"] == 10
    assert record["raised"] == [{"from": 6, "to": 10, "at": 6}]
    assert "raised" not in read_back(tmp_path / "long" / "run.json")
    again: list[str] = []
    assert train(run_config(steps=10, final_fraction=1.0), tmp_path / "raised", announce=again.append) == result
    assert again == []


def test_with_a_cosine_the_rate_is_that_of_the_larger_number_from_there_on(
    run_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(run_config(steps=4, log_every=1), tmp_path / "raised", progress=False)
    used: dict[int, float] = {}
    step = PlaitTrainer.training_step

    def watched(self: PlaitTrainer, *args: Any) -> Tensor:
        used[self.state.global_step + 1] = self.optimizer.param_groups[0]["lr"]
        return step(self, *args)

    monkeypatch.setattr(PlaitTrainer, "training_step", watched)
    train(run_config(steps=8, log_every=1), tmp_path / "raised", progress=False)
    assert sorted(used) == [5, 6, 7, 8]
    raised = dict(used)
    train(run_config(steps=8, log_every=1), tmp_path / "long", progress=False)
    assert {at: used[at] for at in raised} == raised
    rates = [{r["step"]: r["lr"] for r in read_metrics(tmp_path / name)} for name in ("raised", "long")]
    assert [rates[0][step] for step in (5, 6, 7, 8)] == [rates[1][step] for step in (5, 6, 7, 8)]
    assert rates[0][4] != rates[1][4]


def test_steps_cannot_be_lowered(run_config: Make, tmp_path: Path) -> None:
    train(run_config(steps=4), tmp_path, progress=False)
    with pytest.raises(TrainingError, match=r"training\.steps = 3 is less than the 4 of this run"):
        train(run_config(steps=3), tmp_path, progress=False)
    assert read_back(tmp_path / "run.json")["config"]["training"]["steps"] == 4


def test_a_raised_run_that_crashes_goes_on(run_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(steps=9, final_fraction=1.0, save_every=2)
    train(config, tmp_path / "long", progress=False)
    train(run_config(steps=4, final_fraction=1.0, save_every=2), tmp_path / "raised", progress=False)
    step = PlaitTrainer.training_step

    def crash(self: PlaitTrainer, *args: Any) -> Tensor:
        if self.state.global_step == 6:
            raise MemoryError
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(PlaitTrainer, "training_step", crash)
        with pytest.raises(MemoryError):
            train(config, tmp_path / "raised", progress=False)
    train(config, tmp_path / "raised", progress=False)
    assert (tmp_path / "raised" / MODEL).read_bytes() == (tmp_path / "long" / MODEL).read_bytes()
    assert losses(tmp_path / "raised") == losses(tmp_path / "long")


def test_warm_start_takes_the_weights_alone_and_records_their_hash(run_config: Make, tmp_path: Path) -> None:
    train(run_config(steps=4), tmp_path / "first", progress=False)
    said: list[str] = []
    config = run_config(steps=1, learning_rate=1e-30, weight_decay=0.0, seed=3)
    train(config, tmp_path / "second", progress=False, announce=said.append, init_from=tmp_path / "first")
    assert said[-1].startswith(f"weights     of {tmp_path / 'first'} (SHA-256 ")
    before, after = (load_file(tmp_path / name / MODEL) for name in ("first", "second"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    record = read_back(tmp_path / "second" / "run.json")["init_from"]
    assert record["source"] == str(tmp_path / "first")
    assert record["sha256"].startswith(said[-1].partition("SHA-256 ")[2].removesuffix("...)"))
    assert read_metrics(tmp_path / "second")[0]["step"] == 1


def test_a_warm_started_run_without_a_checkpoint_begins_from_the_same_weights_again(
    run_config: Make, tmp_path: Path
) -> None:
    train(run_config(steps=4), tmp_path / "first", progress=False)
    config = run_config(steps=3, seed=1)
    train(config, tmp_path / "whole", progress=False, init_from=tmp_path / "first")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    (tmp_path / "again" / "finished.json").unlink()
    shutil.rmtree(tmp_path / "again" / "model")
    shutil.rmtree(*checkpoints(tmp_path / "again"))
    train(config, tmp_path / "again", progress=False)  # run.json says from what
    assert (tmp_path / "again" / MODEL).read_bytes() == (tmp_path / "whole" / MODEL).read_bytes()

    train(run_config(steps=4, seed=9), tmp_path / "other", progress=False)
    with pytest.raises(
        TrainingError, match=r"belongs to a run that started from the weights of .*first, not from those"
    ):
        train(config, tmp_path / "whole", progress=False, init_from=tmp_path / "other")
    with pytest.raises(TrainingError, match=r"started from the random weights of its seed, not from those of .*first"):
        train(run_config(steps=4, seed=9), tmp_path / "other", progress=False, init_from=tmp_path / "first")


def test_weights_that_do_not_fit_are_refused(run_config: Make, text_file: Path, tmp_path: Path) -> None:
    train(run_config(steps=1), tmp_path / "first", progress=False)

    def start(config: RunConfig) -> None:
        shutil.rmtree(tmp_path / "second", ignore_errors=True)
        train(config, tmp_path / "second", progress=False, init_from=tmp_path / "first")

    with pytest.raises(OptionError, match=r"weights do not fit the model section: .* is \(32, \d+\) there and \(64,"):
        start(run_config(model={"hidden_size": 64}))
    with pytest.raises(OptionError, match=r"is missing there.*more"):
        start(run_config(model={"num_hidden_layers": 4}))
    with pytest.raises(OptionError, match="its task has no tokenizer, this run's tokenizer has 258 entries"):
        start(run_config(data={"corpus": f"text:{text_file}", "length": 16}))
    with pytest.raises(OptionError, match="holds no model"):
        train(run_config(), tmp_path / "third", progress=False, init_from=tmp_path)


def test_a_second_call_is_told_who_trains(run_config: Make, tmp_path: Path) -> None:
    import threading

    seen: list[BaseException] = []

    def second() -> None:
        try:
            train(run_config(steps=2), tmp_path / "run", progress=False)
        except FolderInUse as error:
            seen.append(error)

    with sole_writer(tmp_path / "run", "training"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "run is in use by process" in str(seen[0])
    assert not (tmp_path / "run" / "run.json").exists()


def shifted(value: Tensor) -> Tensor:
    """The same numbers 16 bytes after an aligned address, as a file may hold them."""
    buffer = torch.empty(value.numel() * value.element_size() + 2 * ALIGNMENT, dtype=torch.uint8)
    start = -buffer.data_ptr() % ALIGNMENT + 16
    inside = buffer[start : start + value.numel() * value.element_size()].view(value.dtype).view(value.shape)
    return inside.copy_(value)


def test_resumption_does_not_depend_on_where_a_file_puts_its_tensors(
    run_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(save_every=3)
    train(config, tmp_path / "whole", progress=False)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for name in ("finished.json", "model", "checkpoint-8"):
        path = tmp_path / "resumed" / name
        path.unlink() if path.is_file() else shutil.rmtree(path)
    opened = torch.load

    def load_shifted(*args: Any, **kwargs: Any) -> Any:
        content = opened(*args, **kwargs)
        for state in content.get("state", {}).values():
            state.update({key: shifted(value) for key, value in state.items()})
        return content

    monkeypatch.setattr(torch, "load", load_shifted)
    monkeypatch.setattr(
        sharding, "load_file", lambda path: {key: shifted(value) for key, value in load_file(path).items()}
    )
    addresses: set[int] = set()
    step = PlaitTrainer.training_step

    def watched(self: PlaitTrainer, *args: Any) -> Tensor:
        states = self.optimizer.state.values()
        tensors = [value for state in states for key, value in state.items() if key != "step"]
        addresses.update(tensor.data_ptr() % ALIGNMENT for tensor in [*self.network.parameters(), *tensors])
        return step(self, *args)

    monkeypatch.setattr(PlaitTrainer, "training_step", watched)
    said: list[str] = []
    train(config, tmp_path / "resumed", progress=False, announce=said.append)
    assert said[-1] == "going on from checkpoint-6"
    assert addresses == {0}
    assert (tmp_path / "resumed" / MODEL).read_bytes() == (tmp_path / "whole" / MODEL).read_bytes()


def test_a_loaded_model_lies_where_a_new_one_would(run_config: Make, tmp_path: Path) -> None:
    train(run_config(steps=1), tmp_path, progress=False)
    weights = load_file(tmp_path / MODEL)
    # a name of another length moves everything in the file
    safetensors.torch.save_file(weights, tmp_path / MODEL, {"format": "pt", "moved": "x" * 24})
    model, _ = load(tmp_path / "model")
    assert {tensor.data_ptr() % ALIGNMENT for tensor in [*model.parameters(), *model.buffers()]} == {0}
    tied = torch.nn.ModuleList([torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)])
    tied[0].weight = tied[1].weight
    tied[0].weight.data = shifted(tied[0].weight.data)
    align_weights(tied)
    assert tied[0].weight is tied[1].weight
    assert tied[0].weight.data_ptr() % ALIGNMENT == 0
    value = torch.empty(16)
    assert aligned(value) is value


def test_a_run_keeps_its_tokenizer_for_a_warm_start(run_config: Make, text_file: Path, tmp_path: Path) -> None:
    data = {"corpus": f"text:{text_file}", "length": 16}
    train(run_config(steps=1, data=data), tmp_path / "first", progress=False)
    train(run_config(steps=1, data=data, seed=2), tmp_path / "second", progress=False, init_from=tmp_path / "first")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "second" / "model")) == 258
    assert json.loads((tmp_path / "second" / "run.json").read_text())["init_from"]["sha256"]

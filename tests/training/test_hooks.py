"""State that learns without a gradient, auxiliary losses and knobs, under plait's trainer, another, and conversions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Trainer, TrainingArguments

from contracts import learning_mixer
from contracts.learning_mixer import Centred
from plait.conversion import loop
from plait.errors import OptionError
from plait.models import PlaitConfig, PlaitForCausalLM
from plait.runs.config import RunConfig, TrainingSection
from plait.runs.metrics import read_metrics
from plait.training import MixerCallback, train
from plait.training.trainer import PlaitTrainer

Make = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    with learning_mixer.installed():
        yield


def network() -> PlaitForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "vocab_size": 32}
    return PlaitForCausalLM(PlaitConfig(layer_types=["centred", "attention"], **sizes))


def layer(model: PlaitForCausalLM) -> Centred:
    return model.model.layers[0].attn  # type: ignore[union-attr, return-value]


def rows(count: int, length: int = 6) -> list[dict[str, Tensor]]:
    ids = torch.randint(1, 32, (count, length), generator=torch.Generator().manual_seed(5))
    return [{"input_ids": row, "labels": row} for row in ids]


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    quiet = {"save_strategy": "no", "disable_tqdm": True, "report_to": [], "use_cpu": True, "logging_steps": 1}
    return TrainingArguments(output_dir=str(folder), **quiet | options)


def test_any_trainer_serves_mixers_with_the_callback(tmp_path: Path) -> None:
    """Two steps of two accumulated batches: the averages by hand, and one record of the losses a step."""
    model, data = network(), rows(8)
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 2, "learning_rate": 0.0}
    sampler = {"train_sampling_strategy": "sequential"}
    expected = torch.zeros(16)
    block = model.model.layers[0]
    for step in (data[:4], data[4:]):
        ids = torch.stack([row["input_ids"] for row in step])
        x = block.attn_norm(model.model.embeddings(ids)).detach()
        expected = expected.lerp(x.mean((0, 1)), 0.5)
    callback = MixerCallback()
    trainer = Trainer(model, arguments(tmp_path, **options, **sampler), train_dataset=data, callbacks=[callback])
    trainer.train()
    assert layer(model).steps == 2
    torch.testing.assert_close(layer(model).mean, expected)
    records = [record for record in trainer.state.log_history if "loss" in record]
    assert len(records) == 2
    assert all(record["loss/size"] > 0 for record in records)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert "eval_loss" in trainer.evaluate(data)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


def test_accumulated_auxiliary_losses_have_the_gradient_of_one_batch(tmp_path: Path) -> None:
    """The gradients of four batches of one row add up to those of all rows at once."""
    data = rows(4)
    found = []
    for size in (1, 4):
        model = network()
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size, "max_steps": 1}
        Trainer(
            model, arguments(tmp_path, **options, learning_rate=0.5, optim="sgd", max_grad_norm=0.0), train_dataset=data
        ).train()
        found.append([parameter.detach().clone() for parameter in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_run_goes_on_with_the_bits_of_its_running_state(
    run_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(model={"layer_types": ["centred", "attention"]}, steps=8, save_every=4, validate_every=2)
    train(config, tmp_path / "whole", progress=False)
    records = [record for record in read_metrics(tmp_path / "whole") if "loss" in record]
    assert all(record["loss/size"] > 0 for record in records)

    sound = PlaitTrainer.training_step

    def dying(self: PlaitTrainer, *given: Any) -> Tensor:
        if self.state.global_step == 6:
            raise MemoryError
        return sound(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(PlaitTrainer, "training_step", dying)
        with pytest.raises(MemoryError):
            train(config, tmp_path / "broken", progress=False)
    train(config, tmp_path / "broken", progress=False)
    name = Path("model") / "model.safetensors"
    assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert load_file(tmp_path / "whole" / name)["model.layers.0.attn.mean"].abs().sum() > 0


def test_a_run_freezes_and_goes_on_with_rates_of_groups(
    run_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = [{"match": "*attn.o_proj*", "rate": 0.5}, {"match": "*embeddings*", "start": 6}]
    config = run_config(model={"layer_types": ["centred", "attention"]}, steps=8, save_every=4, groups=groups)
    train(config, tmp_path / "whole", progress=False)
    sound, embeddings = PlaitTrainer.training_step, {}

    def dying(self: PlaitTrainer, *given: Any) -> Tensor:
        embeddings[self.state.global_step] = self.network.get_input_embeddings().weight.detach().clone()
        if self.state.global_step == 7:
            raise MemoryError
        return sound(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(PlaitTrainer, "training_step", dying)
        with pytest.raises(MemoryError):
            train(config, tmp_path / "broken", progress=False)
    assert all(torch.equal(embeddings[0], embeddings[step]) for step in range(7))
    assert not torch.equal(embeddings[0], embeddings[7])
    train(config, tmp_path / "broken", progress=False)
    name = Path("model") / "model.safetensors"
    assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_checkpointing_gathers_no_token_twice() -> None:
    ids, found = torch.randint(1, 32, (2, 7)), []
    for checkpointed in (False, True):
        model = network().train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        model(ids, labels=ids).loss.backward()
        found.append(layer(model).total.clone())
        assert int(layer(model).count) == 14
    assert torch.equal(*found)


def test_a_stage_of_a_conversion_keeps_running_state(tmp_path: Path) -> None:
    data = [{"input_ids": row["input_ids"], "targets": row["labels"]} for row in rows(16)]
    training = TrainingSection(steps=6, batch_size=2, warmup_steps=0, save_every=2)

    def stage(folder: str, dies: bool = False) -> PlaitForCausalLM:
        model, calls = network(), []

        def loss(batch: loop.Batch) -> tuple[Tensor, dict[str, float]]:
            calls.append(1)
            if dies and len(calls) == 4:
                raise MemoryError
            return model(**batch.inputs, shift_labels=batch.targets, use_cache=False).loss, {}

        loop.fit(model, loss, data, training, tmp_path / folder)  # type: ignore[arg-type]
        return model

    whole = stage("whole")
    with pytest.raises(MemoryError):
        stage("broken", dies=True)
    again = stage("broken")
    assert layer(again).steps == 4  # after the checkpoint of step 2
    assert layer(again).mean.abs().sum() > 0
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_running_state_is_saved_and_not_overwritten_by_loading(tmp_path: Path) -> None:
    model = network()
    layer(model).mean.fill_(3.0)
    model.save_pretrained(tmp_path)
    again = PlaitForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(layer(again).mean, torch.full((16,), 3.0))


def test_knobs_are_those_that_the_options_name() -> None:
    attention = network().model.layers[1].attn
    attention.set(logit_scaling=8.0)
    assert attention.options.logit_scaling == 8.0
    with pytest.raises(OptionError, match=r"'attention': option 'num_heads' cannot change after the layer is made\."):
        attention.set(num_heads=4)
    with pytest.raises(OptionError, match=r"logit_scaling=0\.5: divides by its logarithm"):
        attention.set(logit_scaling=0.5)
    with pytest.raises(OptionError, match="No option of this mixer can"):
        layer(network()).set(rate=1)

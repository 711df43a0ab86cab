"""transformers' own Trainer on plait's models: evaluation, resume, smoothing, collators, classification."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorForLanguageModeling,
    DataCollatorWithFlattening,
    EarlyStoppingCallback,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from plait.data.tokenizers import byte_tokenizer
from plait.models import PlaitConfig, PlaitForCausalLM, loss
from plait.models.cache import CACHE_NAME

Rows = list[dict[str, Tensor]]
PLANS = (["attention"], ["gated_deltanet", "attention"], ["hgrn"], ["mla"])


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "report_to": [],
        "use_cpu": True,
    }
    return TrainingArguments(output_dir=str(folder), **defaults | options)


def model(*plan: str, **options: Any) -> PlaitForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "vocab_size": 32}
    return PlaitForCausalLM(PlaitConfig(layer_types=list(plan), **sizes | options))


def rows(count: int = 8) -> Rows:
    return [{"input_ids": torch.arange(12) + i, "labels": torch.arange(12) + i} for i in range(count)]


@pytest.mark.parametrize("pieces", [False, True])
def test_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: bool) -> None:
    if pieces:
        monkeypatch.setattr(loss, "PLAIN_BYTES", 0)
    network, shapes = model("gated_deltanet", "attention"), []

    def metrics(prediction: Any) -> dict[str, float]:
        shapes.append((prediction.predictions.shape, prediction.label_ids.shape))
        hits = prediction.predictions[:, :-1].argmax(-1) == prediction.label_ids[:, 1:]
        return {"accuracy": float(hits.mean())}

    options = arguments(tmp_path, eval_accumulation_steps=1, per_device_eval_batch_size=4)
    trainer = Trainer(network, options, eval_dataset=rows(), compute_metrics=metrics)
    assert trainer.label_names == ["labels"]
    found = trainer.evaluate()
    ids = torch.stack([row["input_ids"] for row in rows()])
    with torch.no_grad():
        expected = network(ids, labels=ids, use_cache=False)
    assert found["eval_loss"] == pytest.approx(expected.loss.item(), rel=1e-5)
    assert shapes == [((8, 12, 32), (8, 12))]
    prediction = trainer.predict(rows())
    torch.testing.assert_close(torch.from_numpy(prediction.predictions), expected.logits)
    assert prediction.metrics["test_accuracy"] == found["eval_accuracy"]
    unlabelled = trainer.predict([{"input_ids": row["input_ids"]} for row in rows()])
    torch.testing.assert_close(torch.from_numpy(unlabelled.predictions), expected.logits)


@pytest.mark.parametrize("plan", PLANS)
def test_resume_and_the_best_model(tmp_path: Path, plan: list[str]) -> None:
    whole, saving = {"max_steps": 4}, {"save_strategy": "steps", "save_steps": 2}
    straight = model(*plan)
    Trainer(straight, arguments(tmp_path / "a", **whole, **saving), train_dataset=rows()).train()
    resumed = model(*plan)
    again = Trainer(resumed, arguments(tmp_path / "a", **whole), train_dataset=rows())
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    for name, value in straight.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, atol=1e-6, rtol=0)
    evaluation = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    chosen = Trainer(
        model(*plan),
        # the loss rises, so that the best model is the first one
        arguments(tmp_path / "b", **whole | {"max_steps": 40}, **saving, **evaluation, learning_rate=3.0),
        train_dataset=rows(),
        eval_dataset=[{"input_ids": row["input_ids"], "labels": row["labels"].flip(0)} for row in rows()],
        callbacks=[EarlyStoppingCallback(2)],
    )
    chosen.train()
    assert chosen.state.global_step < 40
    best = min((entry for entry in chosen.state.log_history if "eval_loss" in entry), key=lambda e: e["eval_loss"])
    assert chosen.state.best_model_checkpoint.endswith(f"checkpoint-{best['step']}")
    assert chosen.evaluate()["eval_loss"] == pytest.approx(best["eval_loss"], rel=1e-5)


@pytest.mark.parametrize("adapted", [False, True])
def test_label_smoothing_is_of_the_next_token(tmp_path: Path, adapted: bool) -> None:
    network: Any = model("gated_deltanet", "attention").eval()
    plain = network
    if adapted:
        peft = pytest.importorskip("peft", reason="peft is an optional extra")
        network = peft.get_peft_model(network, peft.LoraConfig(r=2, target_modules=["q_proj"])).eval()
    ids = torch.stack([row["input_ids"] for row in rows()])
    trainer = Trainer(network, arguments(tmp_path, label_smoothing_factor=0.1), train_dataset=rows())
    found = trainer.compute_loss(network, {"input_ids": ids, "labels": ids.clone()})
    logs = plain(ids).logits[:, :-1].log_softmax(-1)
    expected = -0.9 * logs.gather(-1, ids[:, 1:, None]).mean() - 0.1 * logs.mean()
    torch.testing.assert_close(found, expected)


def language_rows() -> Rows:
    return [{"input_ids": torch.arange(5 + i) % 32} for i in range(8)]


@pytest.mark.parametrize("collator", ["padding", "flattening", "flattening with borders"])
def test_collators(tmp_path: Path, collator: str) -> None:
    """Each batch's loss is the mean over the targets of its rows, whatever they are put into."""
    network, given = model("hgrn", "gated_deltanet", "attention").eval(), language_rows()
    wanted = [network(row["input_ids"][None], labels=row["input_ids"][None]).loss for row in given]
    counts = torch.tensor([len(row["input_ids"]) - 1.0 for row in given])
    expected = (torch.stack(wanted) * counts).sum() / counts.sum()
    if collator == "padding":
        collate: Callable = DataCollatorForLanguageModeling(byte_tokenizer(), mlm=False)
        pad = byte_tokenizer().pad_token_id
        network.resize_token_embeddings(pad + 1)
    else:
        collate = DataCollatorWithFlattening(return_flash_attn_kwargs=collator == "flattening with borders")
    trainer = Trainer(network, arguments(tmp_path), train_dataset=given, data_collator=collate)
    plain = [{"input_ids": row["input_ids"].tolist()} for row in given]
    batch = collate(plain)
    if collator == "padding":
        logits = network(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[..., :32]
        targets = batch["labels"][:, 1:]
        found = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=-100)
    else:
        found = trainer.compute_loss(network, dict(batch))
    torch.testing.assert_close(found, expected)


def test_grouping_by_length_and_bf16(tmp_path: Path) -> None:
    network = model("gated_deltanet", "attention")
    given = [row | {"labels": row["input_ids"]} for row in language_rows()]
    grouping = {"group_by_length": True} if hasattr(TrainingArguments, "group_by_length") else {}
    grouping = grouping or {"train_sampling_strategy": "group_by_length"}
    options = arguments(tmp_path, **grouping, bf16=True, per_device_train_batch_size=1, gradient_accumulation_steps=2)
    before = network.lm_head.weight.detach().clone()
    state = Trainer(network, options, train_dataset=given).train()
    assert np.isfinite(state.training_loss)
    assert network.lm_head.weight.dtype == torch.float32
    assert not torch.equal(network.lm_head.weight, before)


def test_a_cache_is_never_a_prediction(tmp_path: Path) -> None:
    network = model("attention").eval()
    assert CACHE_NAME in network.config.keys_to_ignore_at_inference
    trainer = Trainer(network, arguments(tmp_path, label_smoothing_factor=0.1), eval_dataset=rows())
    assert trainer.predict(rows()).predictions.shape == (8, 12, 32)


def classifier(kind: Any, **options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    plan = ["gated_deltanet", "attention"]
    config = PlaitConfig(layer_types=plan, hidden_size=32, vocab_size=32, num_labels=2, pad_token_id=0, **options)
    return kind.from_config(config)


def test_sequences_are_classified_by_their_last_real_token(tmp_path: Path) -> None:
    network = classifier(AutoModelForSequenceClassification).eval()
    assert type(network).__name__ == "PlaitForSequenceClassification"
    alone = network(torch.tensor([[3, 4, 5]])).logits
    for ids in ([[3, 4, 5, 0, 0], [1] * 5], [[0, 0, 3, 4, 5], [1] * 5]):
        batch = torch.tensor(ids)
        torch.testing.assert_close(network(batch, attention_mask=(batch != 0).long()).logits[:1], alone)
    # the class is whether the first token is 7
    draw = torch.Generator().manual_seed(0)
    given = []
    for i in range(64):
        length = int(torch.randint(3, 7, (), generator=draw))
        ids = torch.randint(8, 30, (length,), generator=draw)
        ids[0] = 7 if i % 2 else 6
        padded = torch.nn.functional.pad(ids, (0, 7 - length))
        given.append({"input_ids": padded, "attention_mask": (padded != 0).long(), "labels": torch.tensor(i % 2)})
    options = arguments(tmp_path, max_steps=30, learning_rate=5e-3, per_device_train_batch_size=16)
    trainer = Trainer(network, options, train_dataset=given, eval_dataset=given)
    trainer.train()
    prediction = trainer.predict(given)
    assert (prediction.predictions.argmax(-1) == prediction.label_ids).mean() > 0.95
    network.save_pretrained(tmp_path / "saved")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    ids = given[0]["input_ids"][None]
    torch.testing.assert_close(again(ids).logits, network.eval()(ids).logits)


@pytest.mark.parametrize("kind", [AutoModelForSequenceClassification, AutoModelForTokenClassification])
def test_accumulated_classification_equals_one_batch(tmp_path: Path, kind: Any) -> None:
    ids = torch.randint(1, 30, (8, 6), generator=torch.Generator().manual_seed(0))
    sequences = kind is AutoModelForSequenceClassification
    given = [{"input_ids": row, "labels": row[0] % 2 if sequences else row % 2} for row in ids]
    weights = []
    for size, steps in ((8, 1), (2, 4)):
        network = classifier(kind, classifier_dropout=0.0)
        options = arguments(
            tmp_path,
            max_steps=1,
            optim="sgd",
            learning_rate=0.1,
            max_grad_norm=0,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
        )
        Trainer(network, options, train_dataset=given).train()
        weights.append(network.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-6, rtol=0)


def test_tokens_are_classified(tmp_path: Path) -> None:
    network = classifier(AutoModelForTokenClassification, classifier_dropout=0.0)
    assert network.dropout.p == 0.0
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 30, (64, 6), generator=draw)
    given = [{"input_ids": row, "labels": row % 2} for row in ids]
    options = arguments(tmp_path, max_steps=60, learning_rate=1e-2, per_device_train_batch_size=16)
    trainer = Trainer(network, options, train_dataset=given, eval_dataset=given)
    trainer.train()
    prediction = trainer.predict(given)
    assert (prediction.predictions.argmax(-1) == prediction.label_ids).mean() > 0.95

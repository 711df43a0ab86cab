"""TRL's trainers on plait's models: what they report is what the model says of the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from plait.data.tokenizers import byte_tokenizer
from plait.models import PlaitConfig, PlaitForCausalLM

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install trl")
datasets = pytest.importorskip("datasets", reason="datasets is an optional extra")
pytestmark = pytest.mark.slow

PLANS = (["gated_deltanet", "attention"], ["hgrn2", "mla"])
QUIET: dict[str, Any] = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "bf16": False, "save_strategy": "no"}
TEXTS = ["abcdefg"[: 2 + i % 5] * (1 + i % 3) for i in range(12)]


def model(plan: list[str]) -> PlaitForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "vocab_size": 258, "initializer_range": 0.3}
    return PlaitForCausalLM(PlaitConfig(layer_types=plan, **sizes))


def loss_by_hand(network: PlaitForCausalLM, rows: list[tuple[list[int], int]]) -> float:
    """Mean over all targets: the tokens of each row from the given one on, each row read alone."""
    total, count = 0.0, 0
    network.eval()
    for ids, first in rows:
        row = torch.tensor([ids])
        with torch.no_grad():
            logs = network(row, use_cache=False).logits.log_softmax(-1)[0]
        first = max(first, 1)
        total -= float(logs[torch.arange(first - 1, len(ids) - 1), row[0, first:]].sum())
        count += len(ids) - first
    return total / count


def fine_tune(plan: list[str], rows: list[dict[str, Any]], folder: Path, **options: Any) -> tuple[Any, float]:
    network, data = model(plan), datasets.Dataset.from_list(rows)
    settings = trl.SFTConfig(
        str(folder), max_length=32, max_steps=2, per_device_eval_batch_size=len(rows), **QUIET | options
    )
    trainer = trl.SFTTrainer(
        network, args=settings, train_dataset=data, eval_dataset=data, processing_class=byte_tokenizer()
    )
    before = [parameter.detach().clone() for parameter in network.parameters()]
    trainer.train()
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    return network, trainer.evaluate()["eval_loss"]


@pytest.mark.parametrize("plan", PLANS, ids="-".join)
@pytest.mark.parametrize("packed", [False, True])
def test_supervised_fine_tuning(tmp_path: Path, plan: list[str], packed: bool) -> None:
    network, found = fine_tune(plan, [{"text": text} for text in TEXTS], tmp_path, packing=packed)
    tokenizer = byte_tokenizer()
    rows = [(tokenizer(text).input_ids + [tokenizer.eos_token_id], 1) for text in TEXTS]
    assert found == pytest.approx(loss_by_hand(network, rows), rel=1e-4)


def test_only_the_completion_is_learnt(tmp_path: Path) -> None:
    rows = [{"prompt": f"what is {i}? ", "completion": f"it is {i % 5}"} for i in range(6)]
    network, found = fine_tune(PLANS[0], rows, tmp_path)
    tokenizer = byte_tokenizer()
    whole = [tokenizer(row["prompt"] + row["completion"]).input_ids + [tokenizer.eos_token_id] for row in rows]
    by_hand = [(ids, len(row["prompt"])) for ids, row in zip(whole, rows, strict=True)]
    assert found == pytest.approx(loss_by_hand(network, by_hand), rel=1e-4)


def test_preferences(tmp_path: Path) -> None:
    model(PLANS[0]).save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"q {i}", "chosen": f" yes {i}", "rejected": f" no {i}"} for i in range(4)]
    settings = trl.DPOConfig(str(tmp_path / "out"), max_steps=2, learning_rate=1e-2, **QUIET)
    data = datasets.Dataset.from_list(rows)
    trainer = trl.DPOTrainer(
        str(tmp_path / "model"), args=settings, train_dataset=data, eval_dataset=data, processing_class=byte_tokenizer()
    )
    before = trainer.evaluate()["eval_loss"]
    assert before == pytest.approx(0.6931, abs=1e-4)  # log 2: the model is its own reference
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before


def test_policy_gradients(tmp_path: Path) -> None:
    settings = trl.GRPOConfig(
        str(tmp_path), max_steps=1, per_device_train_batch_size=4, num_generations=4, max_completion_length=6, **QUIET
    )
    trainer = trl.GRPOTrainer(
        model(PLANS[0]), reward_funcs=lambda completions, **_: [float(len(set(text))) for text in completions],
        args=settings, train_dataset=datasets.Dataset.from_list([{"prompt": f"q {i}"} for i in range(4)]),
        processing_class=byte_tokenizer(),
    )  # fmt: skip
    trainer.train()
    assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(0, abs=1)

"""PEFT's virtual tokens: prompt tuning and p-tuning work with any mixer; prefix tuning is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from plait.errors import CacheError

peft = pytest.importorskip("peft", reason="peft is an optional extra")
KINDS = {"prompt": "PromptTuningConfig", "p-tuning": "PromptEncoderConfig"}


def adapted(model: Any, kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return peft.get_peft_model(model, getattr(peft, kind)(num_virtual_tokens=3, task_type="CAUSAL_LM", **options))


@pytest.mark.parametrize("plan", [["attention"], ["gated_deltanet", "attention"], ["hgrn"]], ids="-".join)
@pytest.mark.parametrize("kind", KINDS)
def test_virtual_tokens_are_trained_and_generate(build, tokens, plan: list[str], kind: str) -> None:
    # a plan without softmax attention has no number of heads, which PEFT asks for and does not use here
    options = {} if "attention" in plan else {"num_attention_heads": 1}
    model = adapted(build(*plan, dtype=torch.float32), KINDS[kind], **options)
    ids, mask = tokens(2, 6), torch.ones(2, 6, dtype=torch.long)
    loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
    loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in trained)
    assert any(parameter.grad.any() for parameter in trained)
    model.eval()
    written = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False)

    def by_hand(row: Tensor) -> Tensor:
        for _ in range(4):
            newest = model(input_ids=row, attention_mask=torch.ones_like(row)).logits[:, -1:].argmax(-1)
            row = torch.cat([row, newest], dim=1)
        return row

    assert torch.equal(written, by_hand(ids))
    ids[1, :2], mask[1, :2] = 0, 0
    padded = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    assert torch.equal(padded[1:, 2:], by_hand(ids[1:, 2:]))


def test_prefix_tuning_is_refused_with_the_reason(build, tokens) -> None:
    model = adapted(build("gated_deltanet", "attention", dtype=torch.float32), "PrefixTuningConfig")
    with pytest.raises(CacheError, match=r"prefix tuning.*p-tuning"):
        model(input_ids=tokens(2, 6))

"""What a policy is told beside queries and keys belongs to the same tokens, whatever is padded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import plait
from plait import catalog
from plait.policies import Call, Dense
from policies.tiny_models import decoder, left_padded, tokens

POLICIES = catalog.names("policy")


class Listening(Dense):
    """Dense attention that keeps its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def attend(self, call: Call) -> Tensor:
        self.calls.append(call)
        return super().attend(call)


def calls(model: Any, **batch: Tensor) -> list[Call]:
    listening = Listening()
    with plait.policy(model, listening), torch.no_grad():
        model(**batch)
    return listening.calls


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "plait"])
def test_hidden_states_and_tables_of_padded_rows(family: str) -> None:
    """Of a padded row they are those of the row alone, at the same places; parts and rows of a call keep them so."""
    model = decoder(family)
    rows = [tokens(1, 6)[0], tokens(1, 9, seed=4)[0]]
    batch = left_padded(rows)
    if family != "plait":
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    padded = calls(model, **batch)
    for index, row in enumerate(rows):
        for call, alone in zip(padded, calls(model, input_ids=row[None]), strict=True):
            assert call.hidden is not None
            assert alone.hidden is not None
            size = len(row)
            torch.testing.assert_close(call.hidden[index, :size], alone.hidden[0], rtol=1e-4, atol=1e-5)
            part = call.rows(torch.tensor([index])).part(2, size)
            torch.testing.assert_close(part.hidden, alone.hidden[:, 2:], rtol=1e-4, atol=1e-5)
            if call.rope is not None and alone.rope is not None:
                raw = call.rope.unrotate(call.k)
                torch.testing.assert_close(raw[index, :, :size], alone.rope.unrotate(alone.k)[0], rtol=1e-4, atol=1e-4)
                turned = part.rope.unrotate(part.q)  # type: ignore[union-attr]
                torch.testing.assert_close(turned[0], alone.rope.unrotate(alone.q)[0, :, 2:], rtol=1e-4, atol=1e-4)


def test_recycled_compares_raw_queries_from_the_first_step_on() -> None:
    """A prompt's last query is turned back as well, each row by its own tables: a padded row is the row alone."""
    model = decoder("llama")
    rows = [tokens(1, 9)[0], tokens(1, 14, seed=4)[0]]
    said = {}
    for name, batch in (("padded", left_padded(rows)), ("alone", left_padded(rows[:1]))):
        with plait.policy(model, "recycled", capacity=4, check=1, threshold=0.3, similarity="raw") as applied:
            said[name] = model.generate(**batch, max_new_tokens=8, min_new_tokens=8, do_sample=False)[:1, -8:]
            assert applied.report().decode.pairs > 0
    assert torch.equal(said["padded"], said["alone"])


@pytest.mark.parametrize("name", POLICIES)
def test_any_budget_of_any_length_gives_options(name: str) -> None:
    """Options are valid for every budget; with a budget of the length or more the policy is dense."""
    kind = catalog.get(name, "policy").load()
    for length in (1, 2, 5, 24):
        for budget in (1, 2, 3, 7, length, length + 1, 100 * length):
            plait.policies.build(name, **kind.with_budget(budget, length))
    model, ids = decoder("llama"), tokens(1, 24)
    with torch.no_grad():
        expected = model(ids).logits[:, -4:]
        for budget in (24, 25, 2400):
            with plait.policy(model, name, **kind.with_budget(budget, 24)):
                out = model(ids[:, :21], use_cache=True)
                parts = [out.logits[:, -1:]]
                for i in range(21, 24):
                    out = model(ids[:, i : i + 1], **{_cache(): out[_cache()]})
                    parts.append(out.logits)
            torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-4, atol=3e-5)


def _cache() -> str:
    from plait.models.cache import CACHE_NAME

    return CACHE_NAME

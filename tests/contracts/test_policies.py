"""Every policy of the catalogue keeps the contract of ``plait.runtime.policy.Policy``."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import plait
from plait import catalog, ops
from plait.errors import CacheError
from plait.models.cache import CACHE_NAME
from plait.ops import native
from plait.policies import Policy, build, masked_reference
from policies.tiny_models import decoder, generate, left_padded, tokens

POLICIES = catalog.names("policy")
MODELS = ["llama", "plait"]
LENGTH = 28
BUDGET = 10


@cache
def model_of(family: str) -> Any:
    """In fp64, so that no choice hangs on rounding."""
    model = decoder(family).double()
    if family != "plait":  # the eager softmax of transformers rounds to fp32
        model.set_attn_implementation("sdpa")
    return model


def options(name: str, budget: int) -> dict[str, Any]:
    kind: type[Policy] = catalog.get(name, "policy").load()
    return kind.with_budget(budget, LENGTH)


def steps(model: Any, ids: Tensor, prompt: int) -> Tensor:
    """Logits of a prompt in one pass and of the tokens after it one by one."""
    with torch.no_grad():
        out = model(ids[:, :prompt], use_cache=True)
        parts = [out.logits]
        for i in range(prompt, ids.shape[1]):
            out = model(ids[:, i : i + 1], **{CACHE_NAME: out[CACHE_NAME]})
            parts.append(out.logits)
    return torch.cat(parts, dim=1)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("name", POLICIES)
def test_full_budget_is_dense(name: str, family: str) -> None:
    model, ids = model_of(family), tokens(2, LENGTH)
    expected = steps(model, ids, 20)
    with plait.policy(model, name, **options(name, LENGTH)) as applied:
        close(steps(model, ids, 20), expected)
        report = applied.report()
    assert report.pairs == report.dense_pairs == 2 * 2 * 4 * LENGTH * (LENGTH + 1) // 2


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("name", POLICIES)
def test_partial_budget_is_its_masked_reference(name: str, family: str) -> None:
    """Outputs and counts of the gathered products equal those of the same selection under a dense mask."""
    model, ids = model_of(family), tokens(2, LENGTH)
    with plait.policy(model, name, **options(name, BUDGET)) as applied:
        found = steps(model, ids, 20)
    with masked_reference(model, name, **options(name, BUDGET)) as reference:
        close(found, steps(model, ids, 20))
    real, masked = applied.report(), reference.report()
    assert bool(found.isfinite().all())
    for phase in ("prefill", "decode"):
        assert getattr(real, phase).pairs == getattr(masked, phase).pairs, phase
        assert getattr(real, phase).dense_pairs == getattr(masked, phase).dense_pairs, phase
    assert real.bytes_held == masked.bytes_held


@pytest.mark.skipif(native.absent() is not None, reason="the kernels are not compiled")
@pytest.mark.parametrize("name", POLICIES)
def test_compiled_products_are_those_of_pytorch(name: str) -> None:
    """In fp32, for which there is a kernel: the same outputs, pairs and bytes as without it."""
    model, ids = decoder("llama"), tokens(2, LENGTH)
    with plait.policy(model, name, **options(name, BUDGET)) as applied:
        found = steps(model, ids, 20)
    with ops.backend("torch"), plait.policy(model, name, **options(name, BUDGET)) as plain:
        torch.testing.assert_close(found, steps(model, ids, 20), rtol=1e-4, atol=1e-5)
    for phase in ("prefill", "decode"):
        assert getattr(applied.report(), phase).pairs == getattr(plain.report(), phase).pairs, phase


@pytest.mark.parametrize("name", [name for name in POLICIES if catalog.get(name, "policy").load().reduces])
def test_partial_budget_saves_what_it_says(name: str) -> None:
    model, ids = model_of("llama"), tokens(1, LENGTH)
    reduces = catalog.get(name, "policy").load().reduces
    with plait.policy(model, name, **options(name, BUDGET)) as applied:
        steps(model, ids, 20)
        report = applied.report()
    for phase in reduces:
        work = getattr(report, phase)
        assert work.pairs < work.dense_pairs


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("budget", [BUDGET, LENGTH])
@pytest.mark.parametrize("name", POLICIES)
def test_left_padded_rows_are_rows_alone(name: str, budget: int, family: str) -> None:
    model = model_of(family)
    rows = [tokens(1, 21)[0], tokens(1, 15, seed=4)[0]]
    with plait.policy(model, name, **options(name, budget)):
        alone = [generate(model, {"input_ids": row[None]}, new=5) for row in rows]
        assert torch.equal(generate(model, left_padded(rows), new=5), torch.cat(alone))


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("name", POLICIES)
def test_rows_are_selected_in_every_part_of_the_memory(name: str, family: str) -> None:
    """Reordering and repeating rows between steps equals having run other rows, as beam search needs."""
    model, ids = model_of(family), tokens(3, LENGTH)
    rows = torch.tensor([2, 0, 0, 1])
    with plait.policy(model, name, **options(name, BUDGET)), torch.no_grad():
        expected = steps(model, ids, 24)[rows, -1]
        out = model(ids[:, :24], use_cache=True)
        for i in range(24, LENGTH - 1):
            out = model(ids[:, i : i + 1], **{CACHE_NAME: out[CACHE_NAME]})
        memory = out[CACHE_NAME]
        memory.reorder_cache(rows)
        close(model(ids[rows, -1:], **{CACHE_NAME: memory}).logits[:, 0], expected)


@pytest.mark.parametrize("name", POLICIES)
def test_beam_search_at_full_budget(name: str) -> None:
    model, batch = model_of("llama"), left_padded([tokens(1, 20)[0], tokens(1, 13, seed=4)[0]])
    expected = generate(model, batch, new=4, num_beams=3)
    with plait.policy(model, name, **options(name, LENGTH)):
        assert torch.equal(generate(model, batch, new=4, num_beams=3), expected)


@pytest.mark.parametrize("name", POLICIES)
def test_chunked_prefill_at_full_budget(name: str) -> None:
    model, batch = model_of("llama"), left_padded([tokens(1, 20)[0], tokens(1, 13, seed=4)[0]])
    expected = generate(model, batch, new=4)
    with plait.policy(model, name, **options(name, LENGTH)):
        assert torch.equal(generate(model, batch, new=4, prefill_chunk_size=6), expected)


@pytest.mark.parametrize("name", POLICIES)
def test_chunks_agree_with_their_masked_reference(name: str) -> None:
    model, ids = model_of("llama"), tokens(2, LENGTH)
    found, pairs = [], []
    for make in (plait.policy, masked_reference):
        with make(model, name, **options(name, BUDGET)) as applied, torch.no_grad():
            out = model(ids[:, :10], use_cache=True)
            parts = [out.logits]
            for first, last in ((10, 21), (21, 22), (22, 23), (23, LENGTH)):
                out = model(ids[:, first:last], **{CACHE_NAME: out[CACHE_NAME]})
                parts.append(out.logits)
            found.append(torch.cat(parts, dim=1))
            pairs.append(applied.report().pairs)
    close(*found)
    assert pairs[0] == pairs[1]


@pytest.mark.parametrize("name", POLICIES)
def test_later_tokens_change_nothing_before_them(name: str) -> None:
    model, ids = model_of("llama"), tokens(1, LENGTH)
    if build(name, **options(name, BUDGET)).looks_ahead:
        return  # by the method's design; its documentation says so
    changed = ids.clone()
    changed[:, 18:] = tokens(1, LENGTH - 18, seed=9)
    with plait.policy(model, name, **options(name, BUDGET)), torch.no_grad():
        close(model(ids).logits[:, :18], model(changed).logits[:, :18])


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("name", POLICIES)
def test_tokens_are_taken_back_or_the_refusal_is_clear(name: str, family: str) -> None:
    model, ids = model_of(family), tokens(1, LENGTH)
    with plait.policy(model, name, **options(name, BUDGET)), torch.no_grad():
        out = model(ids[:, :20], use_cache=True)
        memory = out[CACHE_NAME]
        snapshot = memory.snapshot()
        expected = model(ids[:, 20:21], **{CACHE_NAME: memory}).logits
        if all(layer.state.can_crop for layer in memory.layers):
            memory.crop(-1)
        else:
            with pytest.raises(CacheError, match="snapshot"):
                memory.crop(-1)
            assert memory.get_seq_length() == 21
            memory.restore(snapshot)
        assert memory.get_seq_length() == 20
        close(model(ids[:, 20:21], **{CACHE_NAME: memory}).logits, expected)


@pytest.mark.parametrize("name", POLICIES)
def test_a_short_prompt_and_a_single_token(name: str) -> None:
    """Prompts shorter than every option, fed whole or token by token, are dense."""
    model, ids = model_of("llama"), tokens(1, 5)
    expected = steps(model, ids, 5)
    with plait.policy(model, name, **options(name, LENGTH)):
        close(steps(model, ids, 5), expected)
        close(steps(model, ids, 3), expected)
        close(steps(model, ids, 1), expected)


@pytest.mark.parametrize("name", POLICIES)
def test_the_model_is_as_before(name: str) -> None:
    model, ids = model_of("llama"), tokens(1, 9)
    before = model(ids).logits
    with plait.policy(model, name, **options(name, BUDGET)):
        model(ids)
    assert torch.equal(model(ids).logits, before)

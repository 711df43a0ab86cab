"""One model in several threads: a policy acts in the thread that entered it, and nowhere else."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import plait
from plait import ops
from plait.errors import CacheError, OptionError
from plait.models.cache import CACHE_NAME
from plait.runtime.transformers_hooks import _attached
from policies.tiny_models import decoder, generate, tokens

ROUNDS = 12
FAMILIES = ["llama", "gemma3_text", "plait"]


def logits(model: Any, ids: Tensor, **arguments: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(ids, **arguments).logits
    return out


def together(*jobs: Callable[[], object]) -> None:
    """Run jobs at once, each in a thread; the first error is raised."""
    gate = threading.Barrier(len(jobs))

    def begin(job: Callable[[], object]) -> None:
        gate.wait(60)
        job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        for future in [pool.submit(begin, job) for job in jobs]:
            future.result()


@pytest.mark.parametrize("family", FAMILIES)
def test_each_thread_has_its_own_policy(family: str) -> None:
    """Two under different policies, one under a probe, one under none, many rounds of entering and generating."""
    model, ids = decoder(family), tokens(1, 16)
    settings: list[tuple[str, dict[str, Any]] | None] = [
        None,
        ("streaming", {"sinks": 1, "window": 4}),
        ("quest", {"page": 2, "budget": 4}),
    ]

    def text(setting: tuple[str, dict[str, Any]] | None) -> Tensor:
        """Logits of the prompt and the tokens said after it."""
        if setting is None:
            return torch.cat([logits(model, ids).flatten(), generate(model, {"input_ids": ids}, new=6)[0]])
        with plait.policy(model, setting[0], **setting[1]) as applied:
            out = torch.cat([logits(model, ids).flatten(), generate(model, {"input_ids": ids}, new=6)[0]])
            assert applied.report().decode.pairs > 0
        return out

    expected = [text(setting) for setting in settings]
    assert not torch.equal(expected[0], expected[1])
    measured = plait.probe(model, "attention_sinks")
    measured.run(ids)
    scores = measured.scores()

    def job(index: int) -> None:
        for _ in range(ROUNDS):
            assert torch.equal(text(settings[index]), expected[index]), settings[index]

    def watch() -> None:
        for _ in range(ROUNDS):
            own = plait.probe(model, "attention_sinks")
            own.run(ids)
            assert torch.equal(own.scores(), scores)

    together(*(lambda index=index: job(index) for index in range(3)), watch)  # type: ignore[misc]
    assert not _attached
    assert not any("forward" in module.__dict__ or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(text(None), expected[0])


def test_one_policy_in_two_threads_counts_both() -> None:
    """Threads that are given the context of the block run under its policy."""
    model, ids = decoder("llama"), tokens(1, 12)
    with plait.policy(model, "streaming", sinks=1, window=3) as applied:
        expected = logits(model, ids)
        once = applied.report().pairs
        applied.reset_report()
        contexts = [contextvars.copy_context() for _ in range(2)]

        def job(context: contextvars.Context) -> None:
            for _ in range(ROUNDS):
                assert torch.equal(context.run(logits, model, ids), expected)

        together(*(lambda context=context: job(context) for context in contexts))  # type: ignore[misc]
        assert applied.report().pairs == 2 * ROUNDS * once


def test_a_policy_that_only_other_threads_passed_by_says_so() -> None:
    model, ids = decoder("llama"), tokens(1, 8)
    with pytest.warns(UserWarning, match="copy_context"), plait.policy(model, "streaming", window=2):
        together(lambda: logits(model, ids))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with plait.policy(model, "streaming", window=2):
            logits(model, ids)


def test_a_cache_does_not_leave_its_policys_threads() -> None:
    for family in ("llama", "plait"):
        model, ids = decoder(family), tokens(1, 8)
        with plait.policy(model, "streaming", sinks=1, window=3), torch.no_grad():
            cache = model(ids, use_cache=True)[CACHE_NAME]
            with pytest.raises(CacheError, match="not applied"):
                together(lambda: logits(model, ids[:, :1], **{CACHE_NAME: cache}))  # noqa: B023


def test_tasks_of_asyncio_have_their_own_policies() -> None:
    model, ids = decoder("llama"), tokens(1, 12)
    expected = {}
    for window in (2, 5):
        with plait.policy(model, "streaming", sinks=1, window=window):
            expected[window] = logits(model, ids)

    async def job(window: int) -> None:
        with plait.policy(model, "streaming", sinks=1, window=window):
            for _ in range(5):
                assert torch.equal(logits(model, ids), expected[window])
                await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(job(2), job(5))

    asyncio.run(both())


def test_a_probe_of_states_sees_its_own_thread_only() -> None:
    from plait.models import PlaitConfig, PlaitForCausalLM

    torch.manual_seed(0)
    model = PlaitForCausalLM(PlaitConfig(vocab_size=61, hidden_size=32, layer_types=["gla", "attention"])).eval()
    ids = tokens(1, 16)
    alone = plait.probe(model, "state_norms", step=8)
    alone.run(ids)

    def watch() -> None:
        for _ in range(ROUNDS):
            own = plait.probe(model, "state_norms", step=8)
            own.run(ids)
            assert own.records() == alone.records()

    def run() -> None:
        for _ in range(ROUNDS):
            logits(model, tokens(1, 5), use_cache=True)

    together(watch, watch, run)


def test_a_probe_is_in_force_once() -> None:
    model = decoder("llama")
    with plait.probe(model, "attention_sinks") as measured, pytest.raises(OptionError, match="already"):
        measured.__enter__()


def test_a_backend_is_chosen_in_its_own_thread() -> None:
    """``ops.backend`` in one thread leaves another's choice alone."""
    names = ("torch", "reference")

    def job(name: str) -> None:
        for _ in range(200):
            with ops.backend(name):
                assert ops.choose("cpu")[0] == name

    together(*(lambda name=name: job(name) for name in names))  # type: ignore[misc]


def test_the_attention_of_a_model_is_not_changed_under_a_policy() -> None:
    model = decoder("llama")
    before = model.config._attn_implementation
    with plait.policy(model, "streaming"):
        with pytest.raises(OptionError, match="after the `with` block"):
            model.set_attn_implementation("sdpa")
        import copy
        import pickle

        for config in (copy.deepcopy(model.config), pickle.loads(pickle.dumps(model.config))):
            assert config._attn_implementation == before
            assert type(config) is type(decoder("llama").config)
    assert model.config._attn_implementation == before

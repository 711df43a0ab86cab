"""Twenty thousand tokens, one at a time: a state stays as large as it is, a cache grows as its cost says."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch

from contracts.checks import cases, tokens
from plait import catalog
from plait.models import PlaitCache, PlaitConfig, PlaitForCausalLM, plan_cost

TOKENS = 20_000
#: What the allocator may keep beside the tensors.
SLACK = 24 * 2**20


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("case", [*catalog.names("mixer"), "attention-window"])
def test_memory_of_twenty_thousand_tokens(case: str) -> None:
    mixer, options = cases()[case]
    config = PlaitConfig(
        vocab_size=61, hidden_size=16, num_hidden_layers=1, intermediate_size=16, layer_types=[mixer],
        mixers={mixer: options}, max_position_embeddings=TOKENS + 1,
    )  # fmt: skip
    torch.manual_seed(0)
    model, cache = PlaitForCausalLM(config).eval(), PlaitCache(config)
    ids = tokens(1, 1)
    start, first_bytes = 0, 0
    with torch.inference_mode():  # a third of the time of each step
        for t in range(1, TOKENS + 1):
            logits = model(ids, past_key_values=cache, use_cache=True).logits
            ids = logits[:, -1:].argmax(-1)
            if t in (2_000, TOKENS // 2, TOKENS):
                assert logits.isfinite().all()
                assert cache.bytes() == plan_cost(config, t, cache_dtype=torch.float32).state_bytes, t
            if t == 2_000:
                gc.collect()
                start, first_bytes = resident(), cache.bytes()
    gc.collect()
    assert cache.bytes() >= first_bytes
    # a growing cache is held twice while a token is added
    assert resident() - start <= 2 * (cache.bytes() - first_bytes) + SLACK

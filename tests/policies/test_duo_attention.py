from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import plait
from plait.errors import DataError, OptionError
from plait.policies import LayerInfo
from plait.policies.head_table import HeadTable
from policies.driver import Driver
from policies.tiny_models import decoder, generate, left_padded, tokens


def mask_of(length: int, sinks: int, window: int) -> torch.Tensor:
    return torch.tensor([[j <= i and (j < sinks or i - j < window) for j in range(length)] for i in range(length)])


@pytest.mark.parametrize("heads", [[[1.0, 1.0]], "full"])
def test_full_heads_are_dense(heads: Any) -> None:
    """Oracle 1, in chunks and in decoding."""
    driver = Driver("duo_attention", 25, heads=heads, sparsity=None, sinks=1, recent=3, chunk=4)
    out = torch.cat([driver.feed(13), driver.feed(7), *(driver.feed() for _ in range(5))], dim=2)
    torch.testing.assert_close(out, driver.attention(torch.ones(25, 25).bool().tril()))
    assert driver.applied.report().share == 1


@pytest.mark.parametrize(("includes_self", "window"), [(False, 6), (True, 5)])
def test_streaming_heads_token_by_token(includes_self: bool, window: int) -> None:
    """Oracles 2, 8, 9: the token mask of window ``recent + 1`` as published; first and last keys, never more."""
    driver = Driver("duo_attention", 25, heads="streaming", sinks=2, recent=5, window_includes_self=includes_self)
    out = torch.cat([driver.feed() for _ in range(25)], dim=2)
    torch.testing.assert_close(out, driver.attention(mask_of(25, 2, window)))
    assert driver.held("streaming") == [[0, 1, *range(26 - window, 25)]] * 2
    store = driver.state["streaming"]
    torch.testing.assert_close(store.keys, driver.k[:, :, driver.held("streaming")[0]], rtol=0, atol=0)
    assert driver.state.bytes() == 2 * 2 * (2 + window - 1) * 8 * 8


def test_chunks_see_all_of_themselves() -> None:
    """First chunk dense; then sinks, the recent tokens before the chunk, and the chunk. Real calls or one: the same."""
    mask = torch.zeros(24, 24, dtype=torch.bool)
    for i in range(24):
        begin = i // 8 * 8
        for j in range(i + 1):
            mask[i, j] = j < 2 or j >= begin - 3
    whole = Driver("duo_attention", 24, heads="streaming", sinks=2, recent=3, chunk=8)
    torch.testing.assert_close(whole.feed(24), whole.attention(mask))
    assert whole.work("prefill").pairs == 4 * int(mask.sum())
    parts = Driver("duo_attention", 24, heads="streaming", sinks=2, recent=3)
    torch.testing.assert_close(torch.cat([parts.feed(8) for _ in range(3)], dim=2), whole.attention(mask))


@pytest.mark.parametrize("chunk", [1, 5, 24])
def test_strict_chunks_change_nothing(chunk: int) -> None:
    driver = Driver("duo_attention", 24, heads="streaming", sinks=2, recent=3, chunk=chunk, strict=True)
    torch.testing.assert_close(driver.feed(24), driver.attention(mask_of(24, 2, 4)))


@pytest.mark.parametrize("full", [[1, 0, 1], [0, 1, 0], [0, 0, 1]])
def test_each_kv_head_in_its_own_mode(full: list[int]) -> None:
    """Oracle 11: the query heads of a group share the mode; bytes follow the formula."""
    table = [[float(x) for x in full]]
    driver = Driver(
        "duo_attention",
        20,
        query_heads=6,
        kv_heads=3,
        heads=table,
        sparsity=None,
        sinks=1,
        recent=4,
        rows=2,
        strict=True,
    )
    out = torch.cat([driver.feed(12), *(driver.feed() for _ in range(8))], dim=2)
    masks = [torch.ones(20, 20).bool().tril() if f else mask_of(20, 1, 5) for f in full for _ in range(2)]
    torch.testing.assert_close(out, driver.attention(torch.stack(masks)[None]))
    assert driver.state.bytes() == 2 * 2 * 8 * 8 * (sum(full) * 20 + (3 - sum(full)) * 5)
    assert driver.applied.report().pairs == 2 * sum(int(mask.sum()) for mask in masks)


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.25, 2), (0.5, 4), (0.7, 5), (1.0, 8)])
def test_the_largest_values_of_all_layers_are_full(share: float, count: int) -> None:
    """Oracle 6: ranked globally; the quantile of numpy, ties by place. Layers may have none or all."""
    layers = [LayerInfo(i, 4, 2, 8, 8) for i in (0, 1, 3, 4)]
    table = HeadTable(((0.9, 0.8), (0.1, 0.2), (0.7, 0.1), (1.5, 0.3)))
    full = table.largest(share, layers)
    assert sum(map(sum, full.values())) == count
    if share == 0.5:
        assert full == {0: [True, True], 1: [False, False], 3: [True, False], 4: [True, False]}
    values = np.clip([v + h * 1e-9 + i * 1e-7 for i, row in enumerate(table.values) for h, v in enumerate(row)], 0, 1)
    threshold = np.quantile(values, 1 - share) if share else 2.0  # the published code's two cases
    assert int((values >= threshold).sum()) == count


def test_tables_from_files(tmp_path: Path) -> None:
    model = decoder("llama")
    rows = tmp_path / "heads.tsv"
    rows.write_text("1.0\t0.0\n0.25\t0.75\n")
    with plait.policy(model, "duo_attention", heads=str(rows), sparsity=None) as applied:
        assert applied.policy.full_heads(applied.info.layers[1]) == [False, True]  # type: ignore[attr-defined, union-attr]
        fingerprint = applied.info.fingerprint  # type: ignore[union-attr]
    saved = tmp_path / "heads.json"
    HeadTable(((1.0, 0.0), (0.25, 0.75)), fingerprint).save(saved)
    with plait.policy(model, "duo_attention", heads=str(saved)):
        pass
    saved.write_text(saved.read_text().replace(fingerprint, "0"))
    with pytest.raises(OptionError, match="another model"), plait.policy(model, "duo_attention", heads=str(saved)):
        pass
    with pytest.raises(OptionError, match="2 layers"), plait.policy(model, "duo_attention", heads=[[1.0, 0.0]]):
        pass
    with pytest.raises(OptionError, match="needs option heads"), plait.policy(model, "duo_attention"):
        pass
    rows.write_text("one two\n")
    with pytest.raises(DataError, match="no head table"), plait.policy(model, "duo_attention", heads=str(rows)):
        pass
    with (
        pytest.raises(DataError, match=r"no file missing\.tsv"),
        plait.policy(model, "duo_attention", heads="missing.tsv"),
    ):
        pass


@pytest.mark.parametrize("family", ["llama", "plait"])
def test_generation_with_mixed_heads_and_padding(family: str) -> None:
    model = decoder(family)
    rows = [tokens(1, 17)[0], tokens(1, 11, seed=4)[0]]
    with plait.policy(model, "duo_attention", heads=[[1.0, 0.1], [0.2, 0.9]], sinks=1, recent=4, chunk=6):
        alone = [generate(model, {"input_ids": row[None]}) for row in rows]
        assert torch.equal(generate(model, left_padded(rows)), torch.cat(alone))


@pytest.mark.parametrize(("sparsity", "full"), [(0.0, 4), (0.25, 3), (0.5, 2), (0.75, 1), (1.0, 0)])
def test_sparsity_is_the_share_of_streaming_heads(sparsity: float, full: int) -> None:
    """Oracle 6, at both ends too: with 1, the head of the largest value streams like all others."""
    model = decoder("llama")
    with plait.policy(model, "duo_attention", heads=[[0.9, 0.1], [0.4, 1.0]], sparsity=sparsity) as applied:
        policy: Any = applied.policy
        found = [policy.full_heads(layer) for layer in applied.info.layers]  # type: ignore[union-attr]
    assert sum(map(sum, found)) == full
    assert full == 0 or found[1][1]

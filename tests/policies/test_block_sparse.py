from __future__ import annotations

import pytest
import torch

from policies.driver import Driver


def mask_of(kept: dict[int, list[int]], length: int, block: int) -> torch.Tensor:
    """Causal mask of the kept key blocks of each query block."""
    mask = torch.zeros(length, length, dtype=torch.bool)
    for i, blocks in kept.items():
        for j in blocks:
            mask[i * block : (i + 1) * block, j * block : (j + 1) * block] = True
    return mask & torch.ones(length, length, dtype=torch.bool).tril()


def test_three_blocks_are_the_first_the_one_before_and_its_own() -> None:
    """Oracle 3."""
    driver = Driver("block_sparse", 32, block=4, top=3)
    mask = mask_of({i: sorted({0, max(i - 1, 0), i}) for i in range(8)}, 32, 4)
    torch.testing.assert_close(driver.feed(32), driver.attention(mask))
    # published sparsity for n blocks, k kept: 1 - (k (k + 1) / 2 + (n - k) k) / (n (n + 1) / 2), in whole blocks
    blocks = 3 * 4 // 2 + (8 - 3) * 3
    diagonal = 8
    assert driver.work("prefill").pairs == 4 * ((blocks - diagonal) * 16 + diagonal * 10)


@pytest.mark.parametrize("length", [32, 29])
def test_free_blocks_have_the_largest_products_of_means(length: int) -> None:
    driver = Driver("block_sparse", length, block=4, top=4)
    masks = []
    blocks = -(-length // 4)
    for h in range(4):
        pad = [torch.cat([x, x.new_zeros(blocks * 4 - length, 8)]) for x in (driver.q[0, h], driver.k[0, h // 2])]
        q, k = (x.view(blocks, 4, 8).mean(1) for x in pad)
        kept = {}
        for i in range(blocks):
            forced = {0, max(i - 1, 0), i}
            free = sorted(set(range(i)) - forced, key=lambda j, i=i: -float(q[i] @ k[j]))  # type: ignore[misc]
            kept[i] = sorted(forced | set(free[: 4 - len(forced)]))
        masks.append(mask_of(kept, length, 4))
    torch.testing.assert_close(driver.feed(length), driver.attention(torch.stack(masks)[None]))
    assert driver.work("prefill").pairs == sum(int(mask.sum()) for mask in masks)


def test_a_chunk_that_begins_inside_a_block_sees_its_own_tokens() -> None:
    driver = Driver("block_sparse", 40, block=4, top=3)
    driver.feed(10)
    out = driver.feed(30)
    assert bool(out.isfinite().all())
    # query 10 stands in the query block 10..13: key blocks 2 and 3 are its own, 1 is the one before
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[10, 4:11] = True
    mask |= torch.eye(40, dtype=torch.bool)
    torch.testing.assert_close(out[:, :, 0], driver.attention(mask)[:, :, 10])

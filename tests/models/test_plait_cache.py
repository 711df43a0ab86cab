"""State as users need it: snapshots, forks, crops, prefixes, ragged continuation."""

from __future__ import annotations

import pytest
import torch

from plait.errors import CacheError, OptionError
from plait.models import PlaitCache


@pytest.fixture
def model(build):
    return build("gated_deltanet", "attention", "local", mixers={"local": {"mixer": "attention", "window": 3}})


def continued(model, ids, cache):
    return model(ids, past_key_values=cache).logits


def test_several_tokens_at_once_continue_like_one_pass(model, tokens) -> None:
    ids = tokens(2, 20)
    whole = model(ids).logits
    cache = PlaitCache(model.config)
    parts = [continued(model, part, cache) for part in ids.split([3, 1, 7, 1, 8], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    assert cache.get_seq_length() == 20


def test_snapshot_and_restore_any_number_of_times(model, tokens) -> None:
    ids = tokens(2, 12)
    cache = PlaitCache(model.config)
    continued(model, ids[:, :5], cache)
    saved, held = cache.snapshot(), cache.bytes()
    assert saved.bytes() == held
    first = continued(model, ids[:, 5:], cache)
    for _ in range(2):
        cache.restore(saved)
        assert (cache.get_seq_length(), cache.bytes()) == (5, held)
        assert torch.equal(continued(model, ids[:, 5:], cache), first)


def test_snapshot_keeps_padding_counts(model, tokens) -> None:
    ids = tokens(2, 12)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    cache = PlaitCache(model.config)
    model(ids[:, :5], attention_mask=mask, past_key_values=cache)
    saved = cache.snapshot()
    first = continued(model, ids[:, 5:], cache)
    cache.reset()
    continued(model, ids, cache)
    cache.restore(saved)
    assert cache.padding.tolist() == [2, 0]
    assert torch.equal(continued(model, ids[:, 5:], cache), first)


def test_restore_refuses_another_model(model, build, tokens) -> None:
    other = build("gated_deltanet")
    cache = PlaitCache(model.config)
    continued(model, tokens(1, 4), cache)
    held = cache.bytes()
    with pytest.raises(CacheError, match="other kinds"):
        cache.restore(PlaitCache(other.config).snapshot())
    assert cache.bytes() == held


def test_a_prefix_serves_many_continuations(model, tokens) -> None:
    prefix, endings = tokens(2, 7), tokens(6, 4, seed=5)
    cache = PlaitCache(model.config)
    continued(model, prefix, cache)
    forked = cache.fork(3)
    together = continued(model, endings, forked)
    for row in range(6):
        alone = model(torch.cat([prefix[row // 3], endings[row]])[None]).logits[0, 7:]
        torch.testing.assert_close(together[row], alone)
    assert cache.get_seq_length() == 7  # the prefix is untouched
    torch.testing.assert_close(continued(model, endings[:2], cache)[0], together[0])


def test_fork_of_nothing() -> None:
    from plait.models import PlaitConfig

    cache = PlaitCache(PlaitConfig())
    assert cache.fork(4).get_seq_length() == 0
    with pytest.raises(CacheError, match="fork"):
        cache.fork(0)


def test_ragged_continuation(model, tokens) -> None:
    """Chunks of different lengths, padded on any side, appended to the rows of a padded batch."""
    ids = tokens(3, 12)
    chunks = [(4, [4, 2, 1]), (5, [1, 5, 3]), (3, [3, 0, 2])]
    alone = [model(ids[row : row + 1]).logits[0] for row in range(3)]
    for side in ("left", "right"):
        cache, done, masks = PlaitCache(model.config), [0, 0, 0], torch.zeros(3, 0, dtype=torch.long)
        for width, lengths in chunks:
            part, mask = tokens(3, width, seed=width), torch.zeros(3, width, dtype=torch.long)
            where = [slice(width - n, width) if side == "left" else slice(0, n) for n in lengths]
            for row, length in enumerate(lengths):
                part[row, where[row]] = ids[row, done[row] : done[row] + length]
                mask[row, where[row]] = 1
            masks = torch.cat([masks, mask], dim=1)
            logits = model(part, attention_mask=masks, past_key_values=cache).logits
            for row, length in enumerate(lengths):
                torch.testing.assert_close(logits[row, where[row]], alone[row][done[row] : done[row] + length])
                done[row] += length
        assert cache.get_seq_length() == 12
        assert cache.padding.tolist() == [4, 5, 6]


def test_mask_must_agree_with_the_padding_seen(model, tokens) -> None:
    cache = PlaitCache(model.config)
    continued(model, tokens(1, 4), cache)
    with pytest.raises(OptionError, match="own attention_mask"):
        model(tokens(1, 1), attention_mask=torch.tensor([[0, 1, 1, 1, 1]]), past_key_values=cache)


def test_rows_can_be_reordered_selected_and_repeated(model, tokens) -> None:
    ids, mask = tokens(3, 9), torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1]])
    cache = PlaitCache(model.config)
    model(ids[:, :4], attention_mask=mask, past_key_values=cache)
    saved = cache.snapshot()
    straight = continued(model, ids[:, 4:], cache)
    changes = {
        "reorder_cache": (torch.tensor([2, 0, 0]), [2, 0, 0]),
        "batch_select_indices": (torch.tensor([True, False, True]), [0, 2]),
        "batch_repeat_interleave": (2, [0, 0, 1, 1, 2, 2]),
    }
    for method, (argument, rows) in changes.items():
        cache.restore(saved)
        getattr(cache, method)(argument)
        assert cache.padding.tolist() == [[1, 0, 2][row] for row in rows]
        torch.testing.assert_close(continued(model, ids[rows, 4:], cache), straight[rows])


def test_crop_then_continue_is_never_having_seen(build, tokens) -> None:
    model, ids = build("attention", "attention"), tokens(2, 10)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    cache, fresh = PlaitCache(model.config), PlaitCache(model.config)
    model(ids[:, :7], attention_mask=mask, past_key_values=cache)
    cache.crop(-3)
    model(ids[:, :4], attention_mask=mask[:, :4], past_key_values=fresh)
    assert (cache.get_seq_length(), cache.bytes()) == (4, fresh.bytes())
    torch.testing.assert_close(continued(model, ids[:, 7:], cache), continued(model, ids[:, 7:], fresh))
    with pytest.raises(CacheError, match="shortest row of the cache has 5"):
        cache.crop(-6)
    with pytest.raises(CacheError, match="negative"):
        cache.crop(2)
    assert cache.get_seq_length() == 7


@pytest.mark.parametrize("plan", [("attention", "gated_deltanet"), ("attention", "local")])
def test_crop_without_a_snapshot_is_an_error_and_changes_nothing(build, tokens, plan: tuple[str, ...]) -> None:
    model = build(*plan, mixers={"local": {"mixer": "attention", "window": 3}})
    ids = tokens(1, 9)
    cache = PlaitCache(model.config)
    continued(model, ids[:, :6], cache)
    saved, held = cache.snapshot(), cache.bytes()
    with pytest.raises(CacheError, match=r"Layer 1 cannot forget.*snapshot"):
        cache.crop(-2)
    assert (cache.get_seq_length(), cache.bytes()) == (6, held)
    after = continued(model, ids[:, 6:], cache)
    cache.restore(saved)
    assert torch.equal(continued(model, ids[:, 6:], cache), after)


def test_a_window_that_dropped_nothing_can_crop(build, tokens) -> None:
    model, ids = build("attention", mixers={"attention": {"window": 8}}), tokens(1, 12)
    cache = PlaitCache(model.config)
    continued(model, ids[:, :6], cache)
    cache.crop(-2)
    torch.testing.assert_close(continued(model, ids[:, 4:], cache), model(ids).logits[:, 4:])


def test_reset(model, tokens) -> None:
    cache = PlaitCache(model.config)
    first = model(tokens(2, 5), attention_mask=torch.tensor([[0, 1, 1, 1, 1], [1] * 5]), past_key_values=cache).logits
    cache.reset()
    assert (cache.get_seq_length(), cache.bytes(), cache.padding) == (0, 0, None)
    again = model(tokens(2, 5), attention_mask=torch.tensor([[0, 1, 1, 1, 1], [1] * 5]), past_key_values=cache).logits
    assert torch.equal(first, again)


def test_it_is_a_transformers_cache(model, tokens) -> None:
    from transformers import Cache

    cache = PlaitCache(model.config)
    continued(model, tokens(2, 5), cache)
    assert isinstance(cache, Cache)
    assert len(cache) == 3
    assert all(cache.get_seq_length(layer) == 5 for layer in range(3))  # tokens seen, whatever is stored
    assert cache.get_mask_sizes(2, 0) == (7, 0)
    assert cache.get_max_length() == -1
    assert not cache.is_compileable
    assert not cache.is_croppable
    with pytest.raises(CacheError, match="mixer"):
        cache.update(torch.zeros(1), torch.zeros(1), 0)

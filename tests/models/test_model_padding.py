"""Padding anywhere in a row, documents packed into rows, and position ids."""

from __future__ import annotations

import pytest
import torch

from plait.errors import OptionError
from plait.mixers import Context
from plait.models.cache import CACHE_NAME
from plait.models.padding import arrange

CPU = torch.device("cpu")


@pytest.fixture
def model(build):
    return build("gated_deltanet", "attention")


@pytest.mark.parametrize("side", ["left", "right", "interior"])
def test_padding_changes_nothing_for_real_tokens(model, tokens, side: str) -> None:
    ids, lengths = tokens(3, 8), [8, 5, 1]
    slots = {
        "left": [range(8), range(3, 8), range(7, 8)],
        "right": [range(8), range(5), range(1)],
        "interior": [range(8), [0, 2, 3, 6, 7], [4]],
    }[side]
    padded, mask = tokens(3, 8, seed=9), torch.zeros(3, 8, dtype=torch.long)
    for row, where in enumerate(slots):
        mask[row, list(where)] = 1
        padded[row, list(where)] = ids[row, : lengths[row]]
    logits = model(padded, attention_mask=mask).logits
    for row, where in enumerate(slots):
        torch.testing.assert_close(logits[row, list(where)], model(ids[row : row + 1, : lengths[row]]).logits[0])


def test_a_mask_of_ones_takes_the_unpadded_path() -> None:
    assert arrange(2, 4, CPU, attention_mask=torch.ones(2, 4)).padding is None
    layout = arrange(2, 4, CPU, attention_mask=torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]))
    assert layout.order is None  # already in front
    assert layout.padding.tolist() == [2, 0]
    assert layout.positions.tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]


def test_positions_restart_with_documents() -> None:
    layout = arrange(2, 3, CPU, cu_seqlens=torch.tensor([0, 2, 6]))
    assert layout.positions.tolist() == [[0, 1, 0, 0, 1, 2]]
    assert layout.cu_seqlens.tolist() == [0, 2, 3, 6]
    assert arrange(2, 2, CPU, position_ids=torch.tensor([[7, 8]])).positions.tolist() == [[7, 8], [7, 8]]


def test_moves_are_undone() -> None:
    layout = arrange(2, 5, CPU, attention_mask=torch.tensor([[1, 0, 1, 1, 0], [0, 1, 1, 0, 0]]))
    x = torch.arange(10.0).view(2, 5, 1)
    moved = layout.inward(x)
    assert moved[0, 2:, 0].tolist() == [0, 2, 3]
    assert moved[1, 3:, 0].tolist() == [6, 7]
    assert torch.equal(layout.outward(moved), x)


def test_packed_documents_equal_separate_ones(model, tokens) -> None:
    ids, lengths = tokens(1, 12), [4, 1, 7]
    separate = torch.cat([model(part).logits for part in ids.split(lengths, dim=1)], dim=1)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    for arguments in (
        {"cu_seqlens": torch.tensor([0, 4, 5, 12])},
        {"position_ids": positions},
        {"cu_seq_lens_q": torch.tensor([0, 4, 5, 12], dtype=torch.int32), "max_length_q": 7, "position_ids": positions},
    ):
        torch.testing.assert_close(model(ids, **arguments).logits, separate)


def test_documents_in_several_rows(model, tokens) -> None:
    ids = tokens(2, 6)
    positions = torch.tensor([[0, 1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 0]])
    pieces = [[2, 4], [5, 1]]
    expected = torch.cat(
        [
            torch.cat([model(part).logits for part in ids[row : row + 1].split(pieces[row], dim=1)], dim=1)
            for row in range(2)
        ]
    )
    packed = model(ids, position_ids=positions, output_hidden_states=True)
    torch.testing.assert_close(packed.logits, expected)
    assert packed.hidden_states[1].shape == (2, 6, 16)
    borders = torch.tensor([0, 2, 11, 12])  # the end of the first row is understood
    torch.testing.assert_close(model(ids, cu_seqlens=borders).logits, expected)


def test_collator_of_transformers(model, tokens) -> None:
    from transformers import DataCollatorWithFlattening

    rows = [{"input_ids": tokens(1, n, seed=n)[0].tolist()} for n in (3, 6, 2)]
    batch = DataCollatorWithFlattening(return_flash_attn_kwargs=True)(rows)
    packed = model(**batch)
    separate = [model(torch.tensor([row["input_ids"]]), labels=torch.tensor([row["input_ids"]])) for row in rows]
    torch.testing.assert_close(packed.logits, torch.cat([output.logits for output in separate], dim=1))
    total = sum(output.loss * (len(row["input_ids"]) - 1) for output, row in zip(separate, rows, strict=True))
    torch.testing.assert_close(packed.loss, total / 8)


def test_no_target_lies_in_another_document(model, tokens) -> None:
    ids = tokens(1, 6)
    packed = model(ids, labels=ids, cu_seqlens=torch.tensor([0, 4, 6]))
    first, second = (model(part, labels=part).loss for part in ids.split([4, 2], dim=1))
    torch.testing.assert_close(packed.loss, (3 * first + second) / 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cu_seqlens": torch.tensor([0, 3])}, "from 0 to 4"),
        ({"cu_seqlens": torch.tensor([0, 3, 2, 4])}, "document borders"),
        ({"cu_seqlens": torch.tensor([[0, 4]])}, "document borders"),
        ({"cu_seqlens": torch.tensor([0, 4]), "attention_mask": torch.tensor([[0, 1, 1, 1]])}, "also have padding"),
        ({"cu_seqlens": torch.tensor([0, 2, 4]), "cached": True}, "cache"),
        ({"position_ids": torch.tensor([[0, 1, 0, 1]]), "cached": True}, "cache"),
        ({"position_ids": torch.tensor([[0, 1, 3, 4]])}, "jump from 1 to 3 at row 0, token 2"),
        ({"position_ids": torch.tensor([[0, 1, 2]])}, r"\(1, 3\)"),
        ({"position_ids": torch.tensor([[0, 1, 2, 3]]), "past_slots": 2, "cached": True}, "where the cache ends"),
        (
            {"position_ids": torch.tensor([[0, 1, 2, 3]]), "attention_mask": torch.tensor([[1, 0, 1, 1]])},
            "where the cache ends",
        ),
        ({"attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1]]), "past_slots": 2, "cached": True}, "hides \\[1\\]"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        arrange(1, 4, CPU, **arguments)


def test_position_ids_of_padded_rows_are_accepted() -> None:
    """As ``generate`` makes them from the mask."""
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    layout = arrange(1, 5, CPU, attention_mask=mask, position_ids=torch.tensor([[0, 0, 0, 1, 2]]))
    assert layout.positions.tolist() == [[0, 0, 0, 1, 2]]
    shifted = arrange(1, 5, CPU, attention_mask=mask, position_ids=torch.tensor([[1, 1, 7, 8, 9]]))
    assert shifted.positions.tolist() == [[0, 0, 7, 8, 9]]
    assert shifted.index.tolist() == layout.index.tolist() == [[0, 0, 0, 1, 2]]
    assert layout.seen.tolist() == [0]


def test_tokens_seen_are_real_ones() -> None:
    later = arrange(
        2, 2, CPU, past_slots=5, past_padding=torch.tensor([0, 3]), position_ids=torch.tensor([[9, 10]] * 2)
    )
    assert later.seen.tolist() == [5, 2]
    assert later.index.tolist() == [[5, 6], [2, 3]]
    assert later.positions.tolist() == [[9, 10], [9, 10]]
    context = Context(later.index, later.positions, torch.tensor([0, 1]), seen=later.seen).piece(1, 2)
    assert context.seen.tolist() == [6, 2]
    assert context.padding.tolist() == [0, 0]


def test_offsets_of_the_caller_reach_no_mixer_that_counts_tokens(build, tokens) -> None:
    """HypeNet's scale grows with the token's number; a caller who counts from 1000 changes nothing."""
    model, ids = build("attention", mixers={"attention": {"rope_base": None, "logit_scaling": 4.0}}), tokens(2, 7)
    shifted = torch.arange(1000, 1007)[None]
    assert torch.equal(model(ids, position_ids=shifted).logits, model(ids).logits)


MIXERS = ("attention", "gated_deltanet", "hgrn", "mla")


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("dtype", [torch.long, torch.float32])
def test_a_mask_that_numbers_documents_keeps_them_apart(build, tokens, mixer: str, dtype: torch.dtype) -> None:
    model, ids = build(mixer), tokens(2, 9)
    mask = torch.tensor([[1] * 4 + [2] * 5, [2] * 3 + [5] * 4 + [0] * 2], dtype=dtype)
    found = model(ids, attention_mask=mask, labels=ids)
    for row, start, end in ((0, 0, 4), (0, 4, 9), (1, 0, 3), (1, 3, 7)):
        alone = model(ids[row : row + 1, start:end], use_cache=False).logits
        torch.testing.assert_close(found.logits[row : row + 1, start:end], alone)
    borders = torch.tensor([0, 4, 9, 12, 16, 18])
    torch.testing.assert_close(found.loss, model(ids, cu_seqlens=borders, labels=ids).loss)


INF = float("-inf")


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        ([[0.0] * 6], "added to scores"),
        ([[INF, INF, 0.0, 0.0, 0.0, 0.0]], "added to scores"),
        ([[-1e9, 0.0, 0.0, 0.0, 0.0, 0.0]], "added to scores"),
        ([[1.0, 1.0, 0.5, 1.0, 1.0, 1.0]], "0.5 at row 0, token 2"),
        ([[1.0, float("nan"), 1.0, 1.0, 1.0, 1.0]], "nan at row 0, token 1"),
        ([[1, 1, -1, 1, 1, 1]], "-1 at row 0, token 2"),
        ([[1, 1, 2, 2, 1, 1]], "comes back to document 1 at row 0, token 4"),
        ([[2, 2, 0, 2, 2, 2]], "comes back to document 2 at row 0, token 3"),
        ([[[[1] * 6] * 6]], r"\(1, 1, 6, 6\), a mask of pairs.*cu_seqlens"),
    ],
)
def test_masks_with_other_entries_are_refused(build, tokens, mask: list, match: str) -> None:
    with pytest.raises(OptionError, match=match):
        build("gated_deltanet")(tokens(1, 6), attention_mask=torch.tensor(mask))


def test_a_numbered_mask_and_a_cache(build, tokens) -> None:
    model, ids = build("attention"), tokens(1, 6)
    mask = torch.tensor([[1, 1, 1, 2, 2, 2]])
    with pytest.raises(OptionError, match="cache"):
        model(ids, attention_mask=mask, use_cache=True)
    cache = model(ids, use_cache=True)[CACHE_NAME]
    with pytest.raises(OptionError, match="cache"):
        model(tokens(1, 1), attention_mask=torch.tensor([[1, 1, 1, 1, 1, 1, 2]]), past_key_values=cache)


def test_borders_that_contradict_each_other(build, tokens) -> None:
    model, ids = build("gated_deltanet", "attention"), tokens(2, 6)
    borders = torch.tensor([0, 2, 6, 12])
    restarting = torch.tensor([[0, 1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]])
    mask = torch.tensor([[1, 1, 2, 2, 2, 2], [1] * 6])
    expected = model(ids, cu_seqlens=borders).logits
    for given in ({"position_ids": restarting}, {"attention_mask": mask}, {"attention_mask": torch.ones(2, 6)}):
        torch.testing.assert_close(model(ids, cu_seqlens=borders, **given).logits, expected)
    torch.testing.assert_close(model(ids, attention_mask=mask, position_ids=restarting).logits, expected)
    counting = torch.arange(6).expand(2, -1)
    for given in (
        {"cu_seqlens": borders, "position_ids": counting},
        {"cu_seqlens": torch.tensor([0, 3, 12]), "position_ids": restarting},
        {"cu_seqlens": torch.tensor([0, 3, 12]), "attention_mask": mask},
        {"attention_mask": mask, "position_ids": counting},
    ):
        with pytest.raises(OptionError, match=r"contradict: .* row 0, token 2"):
            model(ids, **given)

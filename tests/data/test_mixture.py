"""Mixtures: shares, curriculum, one source a group, reproducible rows, the sections of a run file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plait.data import MixtureData, build
from plait.data.mixture import GROUP, check_shares, choose
from plait.errors import DataError, OptionError
from plait.runs.config import DataSection, RunConfig
from plait.sections import validated

MQAR = {"vocab_size": 32, "pairs": 2}


def mixture(*parts: dict[str, Any], **section: Any) -> DataSection:
    return DataSection(mixture=list(parts), length=16, **section)


def test_shares_follow_the_weights() -> None:
    choices = choose([(1, 0, 1), (3, 0, 1)], 32 * 4000, seed=0, split="train")
    assert np.mean(choices == 1) == pytest.approx(0.75, abs=0.03)


def test_a_part_is_drawn_between_its_start_and_its_end_only() -> None:
    choices = choose([(1, 0, 0.25), (1, 0.25, 1), (1, 0.5, 1)], 32 * 1000, seed=0, split="train")
    assert set(choices[:250]) == {0}
    assert set(choices[250:500]) == {1}
    assert set(choices[500:]) == {1, 2}


def test_choices_depend_on_seed_and_split() -> None:
    one = choose([(1, 0, 1), (1, 0, 1)], 3200, 0, "train")
    assert (one == choose([(1, 0, 1), (1, 0, 1)], 3200, 0, "train")).all()
    assert (one != choose([(1, 0, 1), (1, 0, 1)], 3200, 1, "train")).any()
    assert (one != choose([(1, 0, 1), (1, 0, 1)], 3200, 0, "test")).any()


@pytest.mark.parametrize(
    ("shares", "moment"), [([(1, 0.1, 1)], "0 of"), ([(1, 0, 0.5), (1, 0.6, 1)], "0.5 of"), ([(1, 0, 0.9)], "0.9 of")]
)
def test_a_hole_in_the_curriculum_is_an_error(shares: list[tuple[float, float, float]], moment: str) -> None:
    with pytest.raises(DataError, match=moment):
        check_shares(shares)


def test_rows_come_from_the_parts_in_turn(tmp_path: Path) -> None:
    section = mixture(
        {"task": "lag", "options": {"vocab_size": 300}},
        {"task": "mqar", "length": 32, "options": MQAR},
    )
    data = build(section, tmp_path, seed=0)
    assert isinstance(data, MixtureData)
    assert (data.vocab_size, data.length, data.tokenizer) == (300, 32, None)
    samples = 20 * GROUP
    rows = data.train_dataset(samples)
    assert len(rows) == samples
    lengths = [len(rows[i]["input_ids"]) for i in range(samples)]
    assert {tuple(lengths[g : g + GROUP]) for g in range(0, samples, GROUP)} == {(16,) * GROUP, (32,) * GROUP}
    parts = [part.train_dataset(samples, seed) for part, seed in zip(data.parts, _offsets(), strict=True)]
    place = {16: 0, 32: 0}
    for i, length in enumerate(lengths):  # each source in its own order, none twice
        expected = parts[length // 32][place[length]]
        assert torch.equal(rows[i]["input_ids"], expected["input_ids"])
        place[length] += 1


def _offsets() -> list[int]:
    from plait.data.order import stable_hash

    return [stable_hash(0, 0), stable_hash(0, 1)]


def test_held_out_rows_are_those_of_the_last_parts(tmp_path: Path) -> None:
    section = mixture(
        {"task": "lag", "end": 0.5, "options": {"vocab_size": 32}},
        {"task": "mqar", "length": 32, "options": MQAR},
        {"task": "mqar", "length": 64, "weight": 3, "options": MQAR},
    )
    lengths = [len(row["input_ids"]) for row in build(section, tmp_path, 0).test_dataset(40)]  # type: ignore[attr-defined]
    assert lengths == [32] * 10 + [64] * 30


def test_text_and_task_share_the_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a b c d e f g h\n" * 4000)
    section = mixture({"corpus": f"text:{tmp_path}/text.txt"}, {"task": "mqar", "options": MQAR})
    data = build(section, tmp_path / "data", 0)
    assert data.vocab_size == 258
    assert data.tokenizer is not None
    assert {len(row["input_ids"]) for row in data.train_dataset(64 * GROUP)} == {16}  # type: ignore[attr-defined]


def test_a_preset_keeps_its_lengths(tmp_path: Path) -> None:
    section = DataSection(task="mqar", length=48, options={"preset": "based"})
    assert build(section, tmp_path, 0).length == 256


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"mixture": [{"weight": 1}]}, "exactly one of 'corpus' and 'task'"),
        ({"task": "lag", "mixture": [{"task": "lag"}]}, "exactly one of"),
        ({"mixture": [{"task": "lag", "start": 0.5, "end": 0.5}]}, "'start' must be below 'end'"),
        ({"mixture": [{"task": "lag", "wieght": 2}]}, "wieght"),
        ({"documents": "separate", "mixture": [{"task": "lag"}]}, "documents: join"),
    ],
)
def test_wrong_sections(section: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        validated(RunConfig, {"data": section}, "run.yaml")

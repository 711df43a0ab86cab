"""MQAR accuracy against models that recall perfectly, never, and in part."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plait.data import TaskData
from plait.data.tasks.mqar import MQAR
from plait.errors import DataError, OptionError
from plait.evaluation.recall import check_settings, recall

VOCAB = 64


class Lookup(nn.Module):
    """Answers with the token that followed the current one the first time, if it stands in the first ``reach``."""

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.device = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        same = input_ids[:, :, None] == input_ids[:, None, : self.reach : 2]  # keys stand at even places
        place = 2 * same.to(torch.int8).argmax(-1) + 1
        answer = input_ids.gather(1, place) * same.any(-1)
        return SimpleNamespace(logits=nn.functional.one_hot(answer, VOCAB).float())


def data(**options: Any) -> TaskData:
    return TaskData(MQAR(vocab_size=VOCAB, length=32, pairs=4, **options), seed=0)


SETTINGS = [{"length": 32, "pairs": 4}, {"length": 64, "pairs": 8}]


def test_perfect_recall_is_one_at_every_setting() -> None:
    results = recall(Lookup(16), data(), SETTINGS, examples=10, batch_size=4)
    assert [(r["length"], r["pairs"], r["accuracy"], r["examples"]) for r in results] == [
        (32, 4, 1, 10),
        (64, 8, 1, 10),
    ]
    assert results[0]["per_example"] == [1.0] * 10


def test_half_the_pairs_remembered_is_one_half() -> None:
    result = recall(Lookup(4), data(), SETTINGS[:1], examples=10, batch_size=4)[0]
    assert result["accuracy"] == 0.5
    assert result["per_example"] == [0.5] * 10


def test_without_settings_those_of_training_are_measured() -> None:
    mixed = data(mixture=[[16, 2], [32, 4]])
    results = recall(Lookup(8), mixed, [], examples=4, batch_size=4)
    assert [(r["length"], r["pairs"]) for r in results] == [(16, 2), (32, 4)]


def test_examples_are_held_out_and_the_same_for_every_seed() -> None:
    first, second = data(), TaskData(data().task, seed=5)
    test = first.test_dataset(1)[0]["input_ids"]
    assert torch.equal(test, second.test_dataset(1)[0]["input_ids"])
    assert not torch.equal(test, first.train_dataset(1)[0]["input_ids"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"length": 32, "pair": 4}, r"mqar\[0\]: unknown key 'pair'\. Did you mean 'pairs'"),
        ({"length": 32}, "'pairs' is missing"),
    ],
)
def test_a_setting_with_other_keys_is_an_error(setting: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        check_settings(data(), [setting])


def test_a_setting_that_cannot_be_is_an_error() -> None:
    with pytest.raises(DataError, match="too short"):
        check_settings(data(), [{"length": 16, "pairs": 8}])

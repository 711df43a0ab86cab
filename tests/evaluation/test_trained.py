"""What a model was trained on as measurements: settings of tasks, parts of mixtures, what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plait.data import MixtureData, TaskData
from plait.data.tasks.lag import Lag
from plait.data.tasks.mqar import MQAR
from plait.errors import DataError, OptionError
from plait.evaluation.batching import Batches
from plait.evaluation.subject import Subject
from plait.evaluation.trained import trained_measurements
from plait.runs.config import EvaluateSection

VOCAB = 64


class Lookup(nn.Module):
    """Answers with the token that followed the current one the first time, if it stands in the first ``reach``."""

    device = torch.device("cpu")

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.reach = reach

    def get_input_embeddings(self) -> nn.Embedding:
        return nn.Embedding(VOCAB, 1)

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        same = input_ids[:, :, None] == input_ids[:, None, : self.reach : 2]  # keys stand at even places
        place = 2 * same.to(torch.int8).argmax(-1) + 1
        answer = input_ids.gather(1, place) * same.any(-1)
        return SimpleNamespace(logits=nn.functional.one_hot(answer, VOCAB).float())


def data(**options: Any) -> TaskData:
    return TaskData(MQAR(vocab_size=VOCAB, length=32, pairs=4, **options), seed=0)


def section(**values: Any) -> EvaluateSection:
    return EvaluateSection.model_validate({"limit": 10, **values})


SETTINGS = [{"length": 32, "pairs": 4}, {"length": 64, "pairs": 8}]


def test_a_task_is_measured_at_every_setting() -> None:
    found = trained_measurements(data(), section(settings=SETTINGS))
    assert [one.name for one in found] == ["mqar length=32 pairs=4", "mqar length=64 pairs=8"]
    subject = Subject("lookup", Lookup(16), None, "")  # type: ignore[arg-type]
    for one in found:
        (score,) = one.measure(subject, Batches(4, subject.device))
        assert (score.metric, score.score, score.n, score.interval) == ("accuracy", 1.0, 10, "Wilson")
        assert list(score.per_sample) == [1.0] * 10
    (half,) = found[0].measure(Subject("lookup", Lookup(4), None, ""))  # type: ignore[arg-type]
    assert (half.score, list(half.per_sample)) == (0.5, [0.5] * 10)


def test_without_settings_those_of_the_training_are_measured_one_by_one() -> None:
    (one,) = trained_measurements(data(), section())
    assert one.name == "mqar length=32"
    mixed = trained_measurements(data(mixture=[[16, 2], [32, 4]]), section())
    assert [one.name for one in mixed] == ["mqar length=16 pairs=2", "mqar length=32 pairs=4"]
    assert [(one.settings["length"], one.settings["mixture"]) for one in mixed] == [(16, ()), (32, ())]


def test_of_a_mixture_the_parts_that_are_active_at_the_end_count() -> None:
    parts = [TaskData(Lag(vocab_size=16, length=length), 0) for length in (8, 12, 16)]
    mixture = MixtureData(parts, [(1, 0, 0.5), (1, 0, 1), (2, 0.5, 1)], 0)
    assert [one.name for one in trained_measurements(mixture, section())] == ["lag length=12", "lag length=16"]


def test_rows_are_held_out_and_the_same_for_every_seed() -> None:
    first, second = data(), TaskData(data().task, seed=5)
    test = first.test_dataset(1)[0]["input_ids"]
    assert torch.equal(test, second.test_dataset(1)[0]["input_ids"])
    assert not torch.equal(test, first.train_dataset(1)[0]["input_ids"])


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({"length": 32, "pair": 4}, OptionError, r"'mqar' has no option 'pair'\. Did you mean 'pairs'"),
        ({"pairs": "four"}, OptionError, "option pairs='four'"),
        ({"length": 16, "pairs": 8}, DataError, "too short"),
    ],
)
def test_a_setting_that_cannot_be_is_an_error(setting: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        trained_measurements(data(), section(settings=[setting]))

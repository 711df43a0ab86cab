"""A task of token ids as a measurement: are the tokens that it asks for predicted?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from plait import catalog
from plait.data import TaskData
from plait.data.tasks.base import IGNORED, Task, TaskDataset, per_example_accuracy
from plait.errors import OptionError
from plait.evaluation.batching import Batches
from plait.evaluation.language import MOST_LOGITS
from plait.evaluation.measurement import Advance, Measurement
from plait.evaluation.score import Score
from plait.evaluation.subject import Subject
from plait.models.cache import CACHE_NAME
from plait.models.heads import AutoencoderForCompression


@dataclass(frozen=True)
class TaskMeasurement(Measurement):
    """Teacher-forced accuracy on rows of a task of token ids, always the same held-out rows.

    Args:
        label: name of the task in the catalogue, with the settings that tell it from others.
        task: what is generated.
        rows: how many.
    """

    label: str
    task: Task
    rows: int
    kind = "task"
    unit = "rows"

    @property
    def name(self) -> str:
        return self.label

    @property
    def samples(self) -> int:
        return self.rows

    @property
    def settings(self) -> dict[str, Any]:
        name = catalog.name_of(type(self.task), "task")
        return {"task": name, "samples": self.rows, **asdict(self.task)}

    def check(self, subject: Subject) -> None:
        if self.task.autoencoder != isinstance(subject.model, AutoencoderForCompression):
            raise OptionError(
                f"{self.label} and {subject.name} do not fit: an auto-encoder task needs a model trained on one, whose "
                "answers cannot be read off the input."
            )
        if self.task.vocab_size > subject.vocab_size:
            raise OptionError(
                f"{self.label} has {self.task.vocab_size} ids and {subject.name} knows {subject.vocab_size}: "
                f"give the task vocab_size={subject.vocab_size} or less."
            )

    def scores(self, subject: Subject, batches: Batches, advance: Advance) -> list[Score]:
        dataset = TaskDataset(self.task, self.rows, TaskData.HELD_OUT_SEED, "test")
        right: Tensor = torch.zeros(0, dtype=torch.float64)
        queries: Tensor = torch.zeros(0, dtype=torch.float64)

        def accuracy(rows: Sequence[int]) -> list[float]:
            nonlocal right, queries
            batch = TaskData.collate([dataset[row] for row in rows])
            targets = batch["targets"]
            wanted = targets != IGNORED
            predictions = predict(subject, batch["input_ids"], int(wanted.any(0).nonzero()[0]))
            hits = ((predictions == targets) & wanted).sum(0).double()
            right = torch.nn.functional.pad(right, (0, max(0, len(hits) - len(right))))
            queries = torch.nn.functional.pad(queries, (0, max(0, len(hits) - len(queries))))
            right[: len(hits)] += hits
            queries[: len(hits)] += wanted.sum(0)
            advance(len(rows))
            values: list[float] = per_example_accuracy(predictions, targets).tolist()
            return values

        values = batches.run(accuracy, range(self.rows), self.task.longest)
        positions = queries.nonzero().flatten()
        by_position = {"position": positions.tolist(), "accuracy": (right[positions] / queries[positions]).tolist()}
        return [Score.of("accuracy", values, more={"by_position": by_position}, chance=self.task.chance)]


@torch.no_grad()
def predict(subject: Subject, input_ids: Tensor, first: int = 0) -> Tensor:
    """The most probable next token on every position, ``(B, T)``, on the CPU.

    Args:
        subject: the model; under a policy it reads the row in one pass before ``first`` and token by token from there.
        input_ids: ``(B, T)``.
        first: first position that is asked for; before it a policy's answer is -1.
    """
    rows = max(1, MOST_LOGITS // (input_ids.shape[1] * subject.vocab_size))
    return torch.cat([_predict(subject, part.to(subject.device), first).cpu() for part in input_ids.split(rows)])


def _predict(subject: Subject, input_ids: Tensor, first: int) -> Tensor:
    if subject.policy is None:
        return subject.model(input_ids=input_ids, use_cache=False).logits.argmax(-1)
    cache, predictions = None, torch.full_like(input_ids, -1)
    if first > 0:
        cache = subject.model(input_ids=input_ids[:, :first], use_cache=True)[CACHE_NAME]
    for position in range(first, input_ids.shape[1]):
        token = input_ids[:, position : position + 1]
        output = subject.model(input_ids=token, use_cache=True, **{CACHE_NAME: cache})
        cache, predictions[:, position] = output[CACHE_NAME], output.logits[:, -1].argmax(-1)
    return predictions

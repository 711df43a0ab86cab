"""What a study would cost, computed without building a tensor or reading a corpus."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from plait.errors import OptionError
from plait.models.architecture import Architecture
from plait.planner.devices import Device
from plait.planner.footprint import Footprints, TrainingSetting
from plait.planner.memory import TrainingMemory, training_memory
from plait.runs.config import DataSection
from plait.study.file import StudyFile
from plait.study.trials import Trial

#: Numbers of devices that are tried when one is too small.
DEVICES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
#: Ids of the byte tokenizer, its two special tokens included.
BYTE_VOCABULARY = 258


@dataclass(frozen=True)
class Budget:
    """What one configuration on one track costs; per trial, unless it says otherwise.

    Args:
        key, track: of the configuration.
        trials: seeds.
        n_linear, n_full: layers.
        parameters: of the model.
        tokens: seen in training.
        matmul_flops: 6 N per token, N the parameters without the input embedding (2 forward, 4 backward).
        mixing_flops: token mixing by the accounting of 2507.06457, three times the forward pass.
        memory: peak of one device as the trial is set up (:func:`plait.planner.training_memory`).
        devices: the fewest, of 1, 2, 4, ... up to one for each sequence, on which it fits when they share weights,
            gradients, optimiser and the sequences of the batch; None where that is too few.
        memory_then: peak of each of these.
        cache_bytes: of one sequence at the study's longest context.
        device_hours: of one trial, however many devices share it.
        price: of one trial, or None without a price.
    """

    key: str
    track: str
    trials: int
    n_linear: int
    n_full: int
    parameters: int
    tokens: int
    matmul_flops: int
    mixing_flops: int
    memory: TrainingMemory
    devices: int | None
    memory_then: TrainingMemory | None
    cache_bytes: int
    device_hours: float
    price: float | None

    @property
    def flops(self) -> int:
        """Of one trial."""
        return self.matmul_flops + self.mixing_flops

    def record(self) -> dict[str, Any]:
        """For JSON."""
        then = None if self.memory_then is None else self.memory_then.record()
        return {**asdict(self), "flops": self.flops, "memory": self.memory.record(), "memory_then": then}


@dataclass(frozen=True)
class Machine:
    """What trials run on.

    Args:
        device: with its peak and memory.
        utilisation: model FLOPs utilisation, the share of the peak that training reaches.
        price: of one device for an hour, in any currency, or None.

    Raises:
        OptionError: a utilisation not above 0 or above 1, or a negative price.
    """

    device: Device
    utilisation: float = 0.4
    price: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.utilisation <= 1:
            raise OptionError(f"utilisation {self.utilisation:g}: it is a share of the peak, above 0 and at most 1.")
        if self.price is not None and self.price < 0:
            raise OptionError(f"price {self.price:g}: give the price of a device for an hour, 0 or more.")


def plan(study: StudyFile, trials: Sequence[Trial], machine: Machine) -> list[Budget]:
    """The cost of every configuration on every track.

    Args:
        study: the file, for contexts and ``vocab_size``.
        trials: of the study.
        machine: what they would run on.

    Raises:
        OptionError: the vocabulary of a tokenizer is not known without a download.
    """
    groups: dict[tuple[str, str], list[Trial]] = defaultdict(list)
    for trial in trials:
        groups[trial.key, trial.track].append(trial)
    footprints = Footprints()  # shared: most blocks of a grid are the same
    return [_budget(study, group, machine, footprints) for group in groups.values()]


def totals(budgets: Sequence[Budget]) -> dict[str, Any]:
    """Sums over all trials, and the most devices that one of them needs (None where one fits nowhere)."""
    needed = [row.devices for row in budgets]
    prices = [row.trials * row.price for row in budgets if row.price is not None]
    return {
        "trials": sum(row.trials for row in budgets),
        "tokens": sum(row.trials * row.tokens for row in budgets),
        "flops": sum(row.trials * row.flops for row in budgets),
        "device_hours": sum(row.trials * row.device_hours for row in budgets),
        "price": sum(prices) if len(prices) == len(budgets) else None,
        "devices": None if None in needed else max(number for number in needed if number is not None),
    }


def _budget(study: StudyFile, group: list[Trial], machine: Machine, footprints: Footprints) -> Budget:
    trial = group[0]
    run, training = trial.config, trial.config.training
    vocab_size, length = _sizes(study, trial)
    architecture = Architecture.of(run, vocab_size)
    parameters = footprints.parameters(architecture.config)
    embedding = 0 if run.model.tie_word_embeddings else vocab_size * run.model.hidden_size
    processes = trial.resources.processes
    sequences = training.steps * training.batch_size * training.accumulate * processes
    matmul = 6 * (parameters - embedding) * sequences * length
    mixing = 3 * architecture.mixing_flops(length) * sequences
    hours = (matmul + mixing) / (machine.device.peak * machine.utilisation) / 3600
    setting = TrainingSetting.of(training, length)

    @cache
    def memory(shards: int, batch: int) -> TrainingMemory:
        own = replace(setting, batch=batch)
        return training_memory(architecture.config, own, shards=shards, footprints=footprints)

    largest = training.batch_size * processes
    batches = {count: -(-largest // count) for count in DEVICES if count <= largest}
    needed = next((count for count in batches if memory(count, batches[count]).total <= machine.device.memory), None)
    return Budget(
        key=trial.key,
        track=trial.track,
        trials=len(group),
        n_linear=architecture.layers - len(architecture.full_layers),
        n_full=len(architecture.full_layers),
        parameters=parameters,
        tokens=sequences * length,
        matmul_flops=matmul,
        mixing_flops=mixing,
        memory=memory(processes if training.parallel == "fsdp" else 1, training.batch_size),
        devices=needed,
        memory_then=None if needed is None else memory(needed, batches[needed]),
        cache_bytes=architecture.cache_bytes(max(study.contexts)),
        device_hours=hours,
        price=None if machine.price is None else machine.price * hours,
    )


def _sizes(study: StudyFile, trial: Trial) -> tuple[int, int]:
    """Vocabulary and tokens per sequence; of a mixture the largest."""
    data = trial.config.data
    own = [part.model_dump(exclude={"weight", "start", "end"}, exclude_none=True) for part in data.mixture]
    sources = [data.model_copy(update={"mixture": [], **part}) for part in own] or [data]
    vocabularies, lengths = zip(*(_source_sizes(study, trial, source) for source in sources), strict=True)
    return max(vocabularies), max(lengths)


def _source_sizes(study: StudyFile, trial: Trial, data: DataSection) -> tuple[int, int]:
    if data.task is not None:
        from plait.data import build

        bundle = build(data, Path(), trial.seed)
        return bundle.vocab_size, bundle.length
    kind, _, rest = data.tokenizer.partition(":")
    if data.tokenizer == "bytes":
        return BYTE_VOCABULARY, data.length
    if kind == "bpe" and rest.isdecimal():
        return int(rest), data.length
    if study.vocab_size is None:
        raise OptionError(
            f"Track {trial.track!r}: the vocabulary of tokenizer {data.tokenizer!r} is not known without loading it; "
            "set 'vocab_size' in the study file."
        )
    return study.vocab_size, data.length

"""What a study would cost, computed without building a tensor or reading a corpus."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plait.errors import OptionError
from plait.study.architecture import Architecture
from plait.study.file import StudyFile
from plait.study.trials import Trial
from plait.training.config import DataSection

#: Bytes per parameter: fp32 weight, gradient and the two moments of AdamW.
PARAMETER_BYTES, GRADIENT_BYTES, OPTIMISER_BYTES = 4, 4, 8
#: Bytes that a layer keeps for its backward pass per token and channel in bf16: "Reducing Activation Recomputation
#: in Large Transformer Models" (2205.05198), equation 2 without the attention matrices, which no kernel stores.
ACTIVATION_BYTES = 34
#: Bytes of a layer's input in bf16, which is all that gradient checkpointing keeps.
CHECKPOINT_BYTES = 2
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
        weight_bytes, gradient_bytes, optimiser_bytes, activation_bytes: memory of one GPU in data-parallel training.
        cache_bytes: of one sequence at the study's longest context.
        gpu_hours: of one trial.
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
    weight_bytes: int
    gradient_bytes: int
    optimiser_bytes: int
    activation_bytes: int
    cache_bytes: int
    gpu_hours: float

    @property
    def flops(self) -> int:
        """Of one trial."""
        return self.matmul_flops + self.mixing_flops

    @property
    def memory(self) -> int:
        """Bytes on one GPU."""
        return self.weight_bytes + self.gradient_bytes + self.optimiser_bytes + self.activation_bytes

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "flops": self.flops, "memory": self.memory}


def plan(study: StudyFile, trials: Sequence[Trial], peak_flops: float, utilisation: float) -> list[Budget]:
    """The cost of every configuration on every track.

    Args:
        study: the file, for contexts and ``vocab_size``.
        trials: of the study.
        peak_flops: of one GPU, in FLOP/s at the precision of training.
        utilisation: model FLOPs utilisation, the share of that peak that training reaches.

    Raises:
        OptionError: the vocabulary of a tokenizer is not known without a download.
    """
    if not (peak_flops > 0 and 0 < utilisation <= 1):
        raise OptionError(
            f"peak FLOP/s {peak_flops:g} and utilisation {utilisation:g}: both above 0, the latter at most 1."
        )
    groups: dict[tuple[str, str], list[Trial]] = defaultdict(list)
    for trial in trials:
        groups[trial.key, trial.track].append(trial)
    parameters: dict[str, int] = {}
    return [_budget(study, group, parameters, peak_flops * utilisation) for group in groups.values()]


def _budget(study: StudyFile, group: list[Trial], counted: dict[str, int], flops_per_second: float) -> Budget:
    trial = group[0]
    run, training = trial.config, trial.config.training
    vocab_size, length = _sizes(study, trial)
    architecture = Architecture.of(run, vocab_size)
    name = f"{vocab_size} {run.model.model_dump_json()}"
    if name not in counted:
        counted[name] = architecture.parameters()
    parameters = counted[name]
    embedding = 0 if run.model.tie_word_embeddings else vocab_size * run.model.hidden_size
    sequences = training.steps * training.batch_size * training.accumulate
    matmul = 6 * (parameters - embedding) * sequences * length
    mixing = 3 * architecture.mixing_flops(length) * sequences
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
        weight_bytes=PARAMETER_BYTES * parameters,
        gradient_bytes=GRADIENT_BYTES * parameters,
        optimiser_bytes=OPTIMISER_BYTES * parameters,
        activation_bytes=_activations(trial, architecture.layers, length),
        cache_bytes=architecture.cache_bytes(max(study.contexts)),
        gpu_hours=(matmul + mixing) / flops_per_second / 3600,
    )


def _activations(trial: Trial, layers: int, length: int) -> int:
    training = trial.config.training
    channels = training.batch_size * length * trial.config.model.hidden_size
    wide = 2 if training.precision == "fp32" else 1
    if training.gradient_checkpointing:
        return wide * channels * (CHECKPOINT_BYTES * layers + ACTIVATION_BYTES)
    return wide * channels * ACTIVATION_BYTES * layers


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

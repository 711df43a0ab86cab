"""The file that ``plait train`` reads, and that a study resolves once per trial."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from plait import catalog
from plait.errors import nearest
from plait.files import quoted
from plait.names import Name
from plait.sections import (
    DEEPEST,
    Depth,
    Natural,
    Positive,
    Ratio,
    Seed,
    Strict,
    Width,
    read_yaml,
    validated,
)

#: Longest context that decoding is timed at: 16 million tokens, more than any model was ever given.
_LONGEST_CONTEXT = 2**24

Fraction = Annotated[float, Field(ge=0, lt=1)]


class ModelSection(Strict):
    """The architecture. Give ``mixer`` and ``ratio``, or an explicit ``layer_types``.

    Args:
        hidden_size: width d.
        num_hidden_layers: depth.
        mixer: linear mixer of the plan; ``attention`` for a transformer.
        ratio: ``pure``, ``full`` or ``R:1`` linear layers per full layer.
        placement: ``block_r_plus_1`` (R linear, then one full) or ``period_r`` (layer i is full iff (i+1) % R == 0).
        layer_types: explicit plan, instead of mixer, ratio and placement.
        mixers: options by mixer name.
        intermediate_size: width of the feed-forward; None derives it from hidden_ratio.
        hidden_ratio: feed-forward width over hidden_size before the 2/3 of SwiGLU.
        tie_word_embeddings: share the embedding with the output head.
        initialization: ``plain``, ``depth_scaled`` or ``fan_in`` (see ``PlaitConfig``); None: plain.
        initializer_range: standard deviation of the initial weights.
        embedding_range: that of the embedding; None: what ``initialization`` gives it.
    """

    hidden_size: Width = 128
    num_hidden_layers: Depth = 4
    mixer: str = "gated_deltanet"
    ratio: Ratio = "3:1"
    placement: Literal["block_r_plus_1", "period_r"] = "block_r_plus_1"
    layer_types: Annotated[list[str], Field(max_length=DEEPEST)] | None = None
    mixers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    intermediate_size: Width | None = None
    hidden_ratio: Annotated[int | float, Field(gt=0, le=1024)] = 4  # an int stays one: it is part of a trial's name
    tie_word_embeddings: bool = False
    initialization: Literal["plain", "depth_scaled", "fan_in"] | None = None
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    embedding_range: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _known_mixers(self) -> ModelSection:
        known = [*catalog.names("mixer"), *self.mixers]
        named = [("mixer", self.mixer)]
        named += [(f"layer_types[{index}]", name) for index, name in enumerate(self.layer_types or [])]
        for key, name in named:
            if name not in known:
                raise ValueError(f"{key} = {quoted(name)} is not a mixer.{nearest(name, known)}")
        return self


class SourceSection(Strict):
    """Where rows come from: a corpus, or a synthetic task.

    Args:
        corpus: ``python-stdlib``, ``text:PATH`` or ``hf:NAME``.
        field: field of jsonl, parquet or hub rows that holds the text.
        max_bytes: stop reading the corpus after so many bytes of each split; None reads all.
        task: a task of the catalogue, such as ``mqar``, instead of a corpus.
        options: the task's options.
    """

    corpus: str | None = None
    field: str = "text"
    max_bytes: Positive | None = None
    task: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("task")
    @classmethod
    def _known_task(cls, name: str | None) -> str | None:
        if name is not None and name not in catalog.names("task"):
            raise ValueError(f"it is not a task.{nearest(name, catalog.names('task'))}")
        return name


class PartSection(SourceSection):
    """One source of a mixture.

    Args:
        weight: rows of this source, relative to the weights of the others that are active.
        start, end: fractions of the training between which it is active; a curriculum is a sequence of these.
        length: tokens per sequence; None: the section's.
    """

    weight: Annotated[float, Field(gt=0)] = 1.0
    start: Annotated[float, Field(ge=0, lt=1)] = 0.0
    end: Annotated[float, Field(gt=0, le=1)] = 1.0
    length: Positive | None = None

    @model_validator(mode="after")
    def _one_source(self) -> PartSection:
        if (self.corpus is None) == (self.task is None):
            raise ValueError("give exactly one of 'corpus' and 'task'")
        if self.start >= self.end:
            raise ValueError(f"'start' must be below 'end'; here {self.start:g} and {self.end:g}")
        return self


class DataSection(SourceSection):
    """What is learnt: a corpus, a synthetic task, or several of them.

    Args:
        tokenizer: ``bytes``, ``bpe:SIZE`` or ``hf:NAME_OR_PATH``.
        length: tokens per sequence.
        documents: ``join`` (documents run on) or ``separate`` (state and positions restart at each document).
        mixture: several sources instead of one, each with its weight and its part of the training.
        streaming: read and tokenise the training text of a hub corpus while it is learnt, not before; ``max_bytes``
            then limits the held-out splits and the text that a BPE is trained on.
    """

    tokenizer: str = "bytes"
    length: Positive = 256
    documents: Literal["join", "separate"] = "join"
    mixture: list[PartSection] = Field(default_factory=list)
    streaming: bool | None = None

    @model_validator(mode="after")
    def _one_source(self) -> DataSection:
        if (self.corpus is not None) + (self.task is not None) + bool(self.mixture) != 1:
            raise ValueError("give exactly one of 'corpus', 'task' and 'mixture'")
        if self.mixture and self.documents == "separate":
            raise ValueError("a mixture needs documents: join")
        if self.streaming and not (self.corpus or "").startswith("hf:"):
            raise ValueError("only a hub corpus, hf:NAME, has streaming")
        if self.streaming and self.max_bytes is None:
            raise ValueError("streaming needs max_bytes: how much text of each held-out split is read")
        return self


class GroupSection(Strict):
    """Parameters that are trained in their own way.

    Args:
        match: pattern of names of parameters, such as ``*.codebook.*``; ``*`` stands for anything, dots included.
        rate: their learning rate over that of the others.
        weight_decay: theirs; None: as without the group.
        start: first step at which they are trained; until then they are frozen.
        end: step from which on they are frozen again; None: never.
    """

    match: str
    rate: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    start: Natural = 0
    end: Positive | None = None

    @model_validator(mode="after")
    def _some_steps(self) -> GroupSection:
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"'end' must be above 'start'; here {self.end} and {self.start}")
        return self


class TrainingSection(Strict):
    """How it is learnt. Rates follow AdamW with a linear warm-up and a cosine to ``final_fraction`` of the peak.

    Args:
        steps: optimiser steps.
        batch_size: sequences per step and process, before accumulation.
        accumulate: batches per optimiser step.
        learning_rate: peak rate.
        final_fraction: last rate over the peak.
        warmup_steps: steps of linear warm-up.
        weight_decay: on matrices only; never on norms, biases and decay parameters.
        betas, epsilon: of AdamW.
        groups: parameters with a rate, weight decay or steps of their own; the first that matches a name decides.
        clip: largest global gradient norm; 0 turns clipping off.
        precision: ``fp32``, ``bf16`` (autocast) or ``auto`` (bf16 where the device has it).
        gradient_checkpointing: recompute blocks in the backward pass.
        save_every: steps between checkpoints.
        keep: checkpoints kept.
        log_every: steps between logged losses.
        validate_every: steps between losses on the validation split; 0 for never.
        report_to: trackers of transformers, such as ``tensorboard`` or ``wandb``.
        parallel: of several processes: ``ddp`` (each holds the whole model) or ``fsdp`` (each holds a part of it and of
            the optimiser's states); None: ``ddp``.
    """

    steps: Positive = 1000
    batch_size: Positive = 16
    accumulate: Positive = 1
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    warmup_steps: Natural = 100
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    groups: list[GroupSection] = Field(default_factory=list)
    clip: Annotated[float, Field(ge=0)] = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gradient_checkpointing: bool = False
    save_every: Positive = 500
    keep: Positive = 2
    log_every: Positive = 20
    validate_every: Natural = 0
    report_to: list[str] = Field(default_factory=list)
    parallel: Literal["ddp", "fsdp"] | None = None


class MeasureSection(Strict):
    """Something to measure; exactly one of ``suite``, ``tasks`` and ``harness``.

    Args:
        suite: a named set of measurements, such as ``recall``; ``plait eval --help`` lists them.
        tasks: names of tasks or benchmarks of the catalogue.
        harness: names of lm-eval's tasks.
        lengths: of rows or prompts; none: as the model was trained, or as the task sets it.
        limit: samples of each.
        data_dir: folder with the files that benchmarks in words and the harness need.
        options: of the tasks and benchmarks that know them.
    """

    suite: str | None = None
    tasks: list[str] = Field(default_factory=list)
    harness: list[str] = Field(default_factory=list)
    lengths: list[Positive] = Field(default_factory=list)
    limit: Positive | None = None
    data_dir: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("suite")
    @classmethod
    def _known_suite(cls, name: str | None) -> str | None:
        if name is not None and name not in catalog.suites():
            raise ValueError(f"it is not a suite.{nearest(name, catalog.suites())}")
        return name

    @field_validator("tasks")
    @classmethod
    def _known_tasks(cls, names: list[str]) -> list[str]:
        known = [*catalog.names("task"), *catalog.names("benchmark")]
        for name in names:
            if name not in known:
                raise ValueError(f"{quoted(name)} is neither a task nor a benchmark.{nearest(name, known)}")
        return names

    @model_validator(mode="after")
    def _one_kind(self) -> MeasureSection:
        if (self.suite is not None) + bool(self.tasks) + bool(self.harness) != 1:
            raise ValueError("give exactly one of 'suite', 'tasks' and 'harness'")
        return self


class EvaluateSection(Strict):
    """What is measured after training: what was learnt, on rows that training never reads, and whatever else is asked.

    Args:
        limit: samples of each thing that was learnt: rows of a task, rows of held-out text.
        settings: options at which each task that was learnt is measured, such as ``{length: 64, pairs: 4}``, one
            measurement each; none: as it was learnt.
        ar_hits: split the loss on text into tokens that complete a bigram already seen in the context, and the rest.
        ar_hits_rare_below: count a bigram only if it is rarer than this in the training split (None: any bigram).
        decode_contexts: context lengths at which decode speed and cache bytes are measured.
        measure: further tasks, benchmarks, suites and standard sets.
    """

    limit: Positive = 500
    settings: list[dict[str, Any]] = Field(default_factory=list)
    ar_hits: bool = True
    ar_hits_rare_below: Positive | None = None
    decode_contexts: list[Annotated[int, Field(gt=0, le=_LONGEST_CONTEXT)]] = Field(default_factory=list)
    measure: list[MeasureSection] = Field(default_factory=list)


class RunConfig(Strict):
    """One run: what is built, learnt and measured."""

    name: Name = "run"
    seed: Seed = 0
    model: ModelSection = ModelSection()
    data: DataSection
    training: TrainingSection = TrainingSection()
    evaluate: EvaluateSection = EvaluateSection()

    @model_validator(mode="before")
    @classmethod
    def _rows_of_batches(cls, values: Any) -> Any:
        """``evaluate.batches``, of the training's size, is another way to write ``evaluate.limit``."""
        evaluate = values.get("evaluate") if isinstance(values, dict) else None
        if not isinstance(evaluate, dict) or "batches" not in evaluate or "limit" in evaluate:
            return values
        training = values.get("training")
        size = training.get("batch_size") if isinstance(training, dict) else None
        size = TrainingSection().batch_size if size is None else size
        batches = evaluate["batches"]
        if type(batches) is not int or type(size) is not int:
            return values
        rest = {name: value for name, value in evaluate.items() if name != "batches"}
        return {**values, "evaluate": {**rest, "limit": batches * size}}


def load_run_config(path: Path) -> RunConfig:
    """Read and validate a run file."""
    return validated(RunConfig, read_yaml(path), str(path))

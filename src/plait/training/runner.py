"""Trains one run in one folder, and goes on where an earlier call was stopped."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainingArguments
from transformers.utils import logging as transformers_logging

from plait.data import DataBundle, MixtureData, TaskData
from plait.data import build as build_data
from plait.devices import default_device
from plait.errors import OptionError
from plait.models import PlaitForCausalLM
from plait.models.heads import AutoencoderForCompression
from plait.models.pretrained import PlaitPreTrainedModel
from plait.training import metrics, sharding
from plait.training.architecture import build_model_config
from plait.training.batches import share
from plait.training.checkpoint import PARTIAL, checkpoints, clean, publish_folder, read_json, write_json
from plait.training.config import RunConfig, TrainingSection
from plait.training.folder import DATA_FOLDER, FINISHED_FILE, MODEL_FOLDER, claim, write_run_file
from plait.training.progress import ProgressCallback
from plait.training.trackers import check_trackers
from plait.training.trainer import PlaitTrainer


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        folder: the run's folder.
        steps: optimiser steps taken.
        tokens: tokens seen, over all resumptions.
        seconds: time spent training, over all resumptions.
        parameters: trainable parameters.
    """

    folder: Path
    steps: int
    tokens: int
    seconds: float
    parameters: int

    @property
    def model_folder(self) -> Path:
        """Where the model and its tokenizer are saved."""
        return self.folder / MODEL_FOLDER

    @property
    def losses(self) -> list[tuple[int, float]]:
        """Logged training losses as (step, loss)."""
        return metrics.losses(self.folder)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during training, after the checkpoint was saved.

    Attributes:
        step: the step of the checkpoint.
        folder: the run's folder; training it again goes on from there.
    """

    def __init__(self, step: int, folder: Path) -> None:
        super().__init__(f"Stopped at step {step}; a checkpoint is in {folder}. The same command goes on from it.")
        self.step = step
        self.folder = folder


def train(
    config: RunConfig,
    folder: Path,
    *,
    progress: bool = True,
    announce: Callable[[str], None] | None = None,
    data_folder: Path | None = None,
) -> TrainResult:
    """Train the run that ``config`` describes, with everything it leaves in ``folder``.

    A folder with a checkpoint of the same run is gone on with, to the same weights as without the break (bit for
    bit on the CPU); a finished one returns at once. Started by ``torchrun`` or ``accelerate launch`` in several
    processes, they share each step's rows, and the model with ``training.parallel: fsdp``; a run goes on with another
    number of processes as if nothing had changed.

    Args:
        config: the run.
        folder: made if absent. Afterwards it holds ``model`` (with its tokenizer), ``metrics.jsonl``, ``run.json``
            and the last checkpoints.
        progress: show progress on stderr.
        announce: told, line by line, what is trained on which device and where it starts; in the first process only.
        data_folder: where packed tokens and trained tokenizers are kept; runs may share it. None: ``folder/data``.

    Raises:
        OptionError: a launcher that would shard the model as well.
        TrainingError: the folder belongs to another run, the processes cannot share a step's rows evenly, or a loss or
            gradient is not finite.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was saved before.
    """
    folder = Path(folder)
    check_trackers(config.training.report_to)
    args = _arguments(config, folder)
    with args.main_process_first(local=False):
        # the other processes find the folder claimed and clean, and the text packed
        rows = config.training.batch_size * config.training.accumulate * args.world_size
        rows = claim(folder, config, rows, write=args.should_save)
        if (folder / FINISHED_FILE).exists():
            return TrainResult(folder, **read_json(folder / FINISHED_FILE))
        if args.should_save:
            clean(folder)
        batch = share(rows, args.world_size, config.training.batch_size)
        args.per_device_train_batch_size, args.gradient_accumulation_steps = batch
        saved = checkpoints(folder)
        bundle = build_data(config.data, data_folder or folder / DATA_FOLDER, config.seed)
        train_rows = bundle.train_dataset(config.training.steps * rows)
    model = build_model(config, bundle)
    bar = ProgressCallback(config.training.steps) if progress else None
    with quiet(), _stoppable() as stopped:
        trainer = _trainer(model, args, config, bundle, train_rows, bar, stopped.is_set)
        if announce is not None and args.should_save:
            for line in _header(trainer, saved):
                announce(line)
        try:
            trainer.run(saved[-1] if saved else None)
        finally:
            if bar is not None:
                bar.close()
        step = trainer.state.global_step
        if step < config.training.steps:
            raise Interrupted(step, folder)
        weights = sharding.full_weights(model) if trainer.sharded else None
        if args.should_save:
            _save_model(model, weights, bundle, config, folder)
            done = {
                "steps": step,
                "tokens": trainer.tokens,
                "seconds": trainer.seconds,
                "parameters": _trainable(model),
            }
            write_json(folder / FINISHED_FILE, done)
        trainer.accelerator.wait_for_everyone()
    return TrainResult(folder, **read_json(folder / FINISHED_FILE))


def build_model(config: RunConfig, bundle: DataBundle) -> PlaitPreTrainedModel:
    """The model of a run with the initial weights of its seed: a language model, or what the task needs instead.

    Raises:
        OptionError: a mixture of sources that need different kinds of model.
    """
    parts = bundle.parts if isinstance(bundle, MixtureData) else [bundle]
    autoencoder = {isinstance(part, TaskData) and part.task.autoencoder for part in parts}
    if len(autoencoder) > 1:
        raise OptionError("data.mixture: an auto-encoder task, such as mad_compression, mixes with no other kind.")
    kind = AutoencoderForCompression if autoencoder == {True} else PlaitForCausalLM
    model_config = build_model_config(config, bundle.vocab_size, bundle.tokenizer, bundle.length)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return kind(model_config)


def resolved_precision(training: TrainingSection) -> str:
    """``fp32`` or ``bf16``: what ``precision`` means on this machine.

    Raises:
        OptionError: bf16 was asked for and the GPU has none.
    """
    able = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if training.precision == "bf16" and torch.cuda.is_available() and not able:
        raise OptionError("training.precision = 'bf16': this GPU has no bf16; use fp32 or auto.")
    if training.precision == "auto":
        return "bf16" if able else "fp32"
    return training.precision


def _arguments(config: RunConfig, folder: Path) -> TrainingArguments:
    """Arguments of transformers; the first call in a process of several connects it to the others."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise OptionError(
            "accelerate is set up to shard models itself; choose its plain multi-GPU launch and write "
            "training.parallel: fsdp in the run file."
        )
    training = config.training
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=training.steps,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.accumulate,
        max_grad_norm=training.clip,
        bf16=resolved_precision(training) == "bf16",
        use_cpu=default_device().type == "cpu",
        seed=config.seed,
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cache=True,  # what the saved model does; training itself never caches
        disable_tqdm=True,
        log_level="error",
        report_to=training.report_to or "none",
        run_name=config.name,
    )
    args._n_gpu = min(args.n_gpu, 1)  # several GPUs are torchrun's, never nn.DataParallel's
    return args


def _trainer(
    model: PlaitPreTrainedModel,
    args: TrainingArguments,
    config: RunConfig,
    bundle: DataBundle,
    rows: Dataset[Any],
    bar: ProgressCallback | None,
    stopped: Callable[[], bool],
) -> PlaitTrainer:
    training = config.training
    if training.gradient_checkpointing:
        renamed = getattr(model, "activation_checkpointing_enable", None)  # transformers >= 5.2x
        (renamed or model.gradient_checkpointing_enable)()
    if training.parallel == "fsdp" and args.world_size > 1:
        sharding.shard(model, args.device.type, args.bf16)
    validation = (
        bundle.validation_dataset(config.evaluate.batches * training.batch_size) if training.validate_every else None
    )
    callbacks = [] if bar is None or not args.should_save else [bar]
    trainer = PlaitTrainer(model, args, config, rows, validation, bundle.tokenizer, callbacks, stopped)
    if bar is not None:
        bar.trainer = trainer
    return trainer


def _header(trainer: PlaitTrainer, saved: list[Path]) -> Iterator[str]:
    """What a user checks before waiting."""
    args, config = trainer.args, trainer.run_config
    plan: list[str] = trainer.network.config.layer_types  # type: ignore[assignment, union-attr]
    counts = " + ".join(f"{count} {name}" for name, count in Counter(plan).items())
    full = [str(index) for index, name in enumerate(plan) if name == "attention"]
    where = f"{args.device}, {'bf16' if args.bf16 else 'fp32'}"
    if args.world_size > 1:
        where += f", {args.world_size} processes, {'each a part of the model' if trainer.sharded else 'a copy each'}"
    yield f"device      {where}"
    yield f"layers      {counts}" + (f" (attention at {', '.join(full)})" if full else "")
    yield f"parameters  {_trainable(trainer.network):,}"
    yield f"training    {config.training.steps:,} steps of {trainer.rows_per_step} sequences"
    if saved:
        yield f"going on from {saved[-1].name}"


def _save_model(
    model: PlaitPreTrainedModel, weights: dict[str, Tensor] | None, bundle: DataBundle, config: RunConfig, folder: Path
) -> None:
    """Save model (with gathered weights, if any), tokenizer and run file; the folder appears when it is whole."""
    partial = folder / f"{PARTIAL}-{MODEL_FOLDER}"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial, state_dict=weights)
    if bundle.tokenizer is not None:
        bundle.tokenizer.save_pretrained(partial)
    write_run_file(partial, config)
    publish_folder(partial, folder / MODEL_FOLDER)


def _trainable(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own notes and bars off the console, and give its settings back."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second Ctrl-C stops at once.

    Signals reach the main thread only; elsewhere the event is never set.
    """
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def note(number: int, frame: Any) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

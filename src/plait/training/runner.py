"""Trains one run in one folder, and goes on where an earlier call was stopped."""

from __future__ import annotations

import contextlib
import logging
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
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import logging as transformers_logging

from plait.data import DataBundle, MixtureData, TaskData
from plait.data import build as build_data
from plait.data.folders import remove_leftovers
from plait.devices import default_device
from plait.errors import OptionError, TrainingError
from plait.files.locks import sole_writer
from plait.files.manifest import fault
from plait.files.writing import PARTIAL, clean, publish_folder, read_back, write_json
from plait.models import PlaitForCausalLM
from plait.models.architecture import build_model_config
from plait.models.heads import AutoencoderForCompression
from plait.models.pretrained import PlaitPreTrainedModel
from plait.runs import metrics
from plait.runs.checkpoint import checkpoints, newest_whole, set_aside, step_of
from plait.runs.config import RunConfig, TrainingSection
from plait.runs.folder import DATA_FOLDER, FINISHED_FILE, MODEL_FOLDER, claim, write_run_file
from plait.training import sharding, warm_start
from plait.training.batches import share
from plait.training.optimiser import rate_factor
from plait.training.progress import ProgressCallback
from plait.training.trackers import check_trackers
from plait.training.trainer import PlaitTrainer
from plait.training.warm_start import WarmStart

_log = logging.getLogger("plait")


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
    """Ctrl-C during training, after the checkpoint or the finished model was saved.

    Attributes:
        step: the step of the checkpoint.
        folder: the run's folder; training it again goes on from there.
    """

    def __init__(self, step: int, folder: Path, finished: bool = False) -> None:
        what = f"after the last step, {step}; the model" if finished else f"at step {step}; a checkpoint"
        super().__init__(f"Stopped {what} is in {folder}. Run the same command to continue from it.")
        self.step = step
        self.folder = folder


def train(
    config: RunConfig,
    folder: Path,
    *,
    progress: bool = True,
    announce: Callable[[str], None] | None = None,
    data_folder: Path | None = None,
    init_from: str | Path | None = None,
) -> TrainResult:
    """Train the run that ``config`` describes, with everything it leaves in ``folder``.

    A folder with a checkpoint of the same run is gone on with, to the same weights as without the break (bit for
    bit on the CPU); a finished one returns at once. Started by ``torchrun`` or ``accelerate launch`` in several
    processes, they share each step's rows, and the model with ``training.parallel: fsdp``; a run goes on with another
    number of processes as if nothing had changed.

    A checkpoint whose files are not what was saved is set aside with a warning, and the one before it is gone on from.
    ``training.steps`` may be larger than before: the run goes on, with the rate that the larger number gives to each
    step from there on.

    Args:
        config: the run.
        folder: made if absent. Afterwards it holds ``model`` (with its tokenizer), ``metrics.jsonl``, ``run.json``
            and the last checkpoints.
        progress: show progress on stderr.
        announce: told, line by line, what is trained on which device and where it starts; in the first process only.
        data_folder: where packed tokens and trained tokenizers are kept; runs may share it. None: ``folder/data``.
        init_from: start from the weights of this run, saved model or name on the hub, of the same architecture and
            tokenizer, instead of the random ones of the seed; ``run.json`` keeps their hash.

    Raises:
        OptionError: a launcher that would shard the model as well, or weights to start from that do not fit.
        FolderInUse: another process writes in the folder.
        TrainingError: the folder belongs to another run, the processes cannot share a step's rows evenly, a loss or
            gradient is not finite, or no checkpoint is whole.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint or the finished model was saved before.
    """
    folder = Path(folder)
    check_trackers(config.training.report_to)
    args = _arguments(config, folder)
    with sole_writer(folder, "training") if args.should_save else contextlib.nullcontext():
        return _train(config, folder, args, progress, announce, data_folder or folder / DATA_FOLDER, init_from)


def _train(
    config: RunConfig,
    folder: Path,
    args: TrainingArguments,
    progress: bool,
    announce: Callable[[str], None] | None,
    data_folder: Path,
    init_from: str | Path | None,
) -> TrainResult:
    warm = None if init_from is None else warm_start.read(str(init_from))
    with args.main_process_first(local=False):
        # the other processes find the folder claimed and clean, and the text packed
        rows = config.training.batch_size * config.training.accumulate * args.world_size
        record = None if warm is None else warm.record
        recorded = claim(folder, config, rows, write=args.should_save, init_from=record)
        if args.should_save:
            clean(folder)
            remove_leftovers(data_folder)
            _check_model(folder)
        if (done := _finished(folder, config)) is not None:
            return done
        batch = share(recorded.rows, args.world_size, config.training.batch_size)
        args.per_device_train_batch_size, args.gradient_accumulation_steps = batch
        start = newest_whole(folder) if args.should_save else next(reversed(checkpoints(folder)), None)
        bundle = build_data(config.data, data_folder, config.seed)
        train_rows = bundle.train_dataset(config.training.steps * recorded.rows)
    model = build_model(config, bundle)
    header = [] if start is None else [f"going on from {start.name}"]
    if start is None and recorded.init_from is not None:
        header = _start_warm(model, bundle, warm, recorded.init_from)
    if recorded.raised and start is not None and recorded.raised[-1]["at"] == step_of(start):
        header.append(_raised(config.training, recorded.raised[-1]))
    bar = ProgressCallback(config.training.steps) if progress else None
    with quiet(), _stoppable() as stopped:
        trainer = _trainer(model, args, config, bundle, train_rows, bar, stopped.is_set)
        if announce is not None and args.should_save:
            for line in [*_header(trainer), *header]:
                announce(line)
        try:
            trainer.run(start)
        finally:
            if bar is not None:
                bar.close()
        step = trainer.state.global_step
        if step < config.training.steps:
            raise Interrupted(step, folder)
        weights = sharding.full_weights(model) if trainer.sharded else None
        if args.should_save:
            _save_model(model, weights, bundle, config, folder)
            spent = {"steps": step, "tokens": trainer.tokens, "seconds": trainer.seconds}
            write_json(folder / FINISHED_FILE, spent | {"parameters": _trainable(model)}, sealed=True)
        trainer.accelerator.wait_for_everyone()
    if stopped.is_set():  # told so after the last step, when nobody asked any more
        raise Interrupted(step, folder, finished=True)
    result = _finished(folder, config)
    assert result is not None
    return result


def _finished(folder: Path, config: RunConfig) -> TrainResult | None:
    """The result of a run that has all its steps, else None."""
    path = folder / FINISHED_FILE
    if not path.exists():
        return None
    result = TrainResult(folder, **read_back(path))
    return result if result.steps >= config.training.steps else None


def _check_model(folder: Path) -> None:
    """Set a damaged model of a finished run aside, so that it is saved again from the last checkpoint.

    Raises:
        TrainingError: there is no checkpoint to save it from.
    """
    if not (folder / FINISHED_FILE).exists():
        return
    wrong = fault(folder / MODEL_FOLDER) if (folder / MODEL_FOLDER).exists() else "it is missing"
    if wrong is None:
        return
    what = f"The model in {folder / MODEL_FOLDER} is damaged: {wrong}."
    if newest_whole(folder) is None:
        raise TrainingError(
            f"{what} No checkpoint is left to save it again from: restore it, or delete {folder} to train it again."
        )
    if (folder / MODEL_FOLDER).exists():
        what += f" It is now {set_aside(folder / MODEL_FOLDER).name}."
    _log.warning("%s It is saved again from the last checkpoint.", what)
    (folder / FINISHED_FILE).unlink()


def _start_warm(
    model: PreTrainedModel, bundle: DataBundle, given: WarmStart | None, recorded: dict[str, str]
) -> list[str]:
    """Put the weights into the model that the run's folder names; returns lines for the user.

    Raises:
        TrainingError: those weights are no longer what they were when the run began.
    """
    warm = given or warm_start.read(recorded["source"])
    if warm.sha256 != recorded["sha256"]:
        raise TrainingError(
            f"The weights of {recorded['source']} have changed since this run started from them; restore them, or use "
            "another folder."
        )
    differences = warm_start.apply(warm, model, bundle.tokenizer)
    lines = [f"weights     of {warm.source} (SHA-256 {warm.sha256[:12]}...)"]
    if differences:
        lines.append(f"            whose configuration differs: {'; '.join(differences[:5])}")
    return lines


def _raised(training: TrainingSection, record: dict[str, int]) -> str:
    before = training.model_copy(update={"steps": record["from"]})
    rates = [section.learning_rate * rate_factor(record["at"], section) for section in (before, training)]
    return (
        f"steps raised from {record['from']:,} to {record['to']:,}: the rate of the next step is {rates[1]:.3g} "
        f"instead of {rates[0]:.3g}"
    )


def build_model(config: RunConfig, bundle: DataBundle) -> PlaitPreTrainedModel:
    """The model of a run with the initial weights of its seed: a language model, or what the task needs instead.

    Raises:
        OptionError: a mixture of sources that need different kinds of model.
    """
    parts = bundle.parts if isinstance(bundle, MixtureData) else [bundle]
    autoencoder = {isinstance(part, TaskData) and part.task.autoencoder for part in parts}
    if len(autoencoder) > 1:
        raise OptionError(
            "data.mixture: an auto-encoder task, such as mad_compression, cannot be mixed with another kind."
        )
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
        raise OptionError("training.precision = 'bf16': this GPU cannot compute in bf16; use fp32 or auto.")
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
    validation = bundle.validation_dataset(config.evaluate.limit) if training.validate_every else None
    callbacks = [] if bar is None or not args.should_save else [bar]
    trainer = PlaitTrainer(model, args, config, rows, validation, bundle.tokenizer, callbacks, stopped)
    if bar is not None:
        bar.trainer = trainer
    return trainer


def _header(trainer: PlaitTrainer) -> Iterator[str]:
    """What a user checks before waiting."""
    args, config = trainer.args, trainer.run_config
    plan: list[str] = trainer.network.config.layer_types  # type: ignore[assignment, union-attr]
    counts = " + ".join(f"{count} {name}" for name, count in Counter(plan).items())
    full = [str(index) for index, spec in enumerate(trainer.network.config.layers()) if spec.full]  # type: ignore
    where = f"{args.device}, {'bf16' if args.bf16 else 'fp32'}"
    if args.world_size > 1:
        where += f", {args.world_size} processes, {'each a part of the model' if trainer.sharded else 'a copy each'}"
    yield f"device      {where}"
    yield f"layers      {counts}" + (f" (full at {', '.join(full)})" if full else "")
    yield f"parameters  {_trainable(trainer.network):,}"
    yield f"training    {config.training.steps:,} steps of {trainer.rows_per_step} sequences"


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

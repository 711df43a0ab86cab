"""The Trainer of transformers with plait's optimiser, exact resumption, atomic checkpoints and a quiet console."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import DefaultFlowCallback, PrinterCallback

from plait.data.order import stable_hash
from plait.data.packing import IGNORED, collate
from plait.data.streaming import StreamedTokens
from plait.errors import TrainingError
from plait.files.writing import PARTIAL, publish_folder, read_back, write_json
from plait.models.loading import SHARDED_FOLDER
from plait.runs.checkpoint import checkpoints, rotate
from plait.runs.config import RunConfig, TrainingSection
from plait.runs.folder import write_run_file
from plait.runs.metrics import FILE as METRICS
from plait.runs.metrics import MetricsFile
from plait.training import sharding
from plait.training.batches import DealtSampler
from plait.training.hooks import MixerCallback
from plait.training.optimiser import (
    build_optimiser,
    build_schedule,
    drop_frozen_gradients,
    set_rate,
    training_groups,
)

#: File of a checkpoint with the position in the data and the running sums.
STATE_FILE = "run_state.json"
SCHEDULE_FILE = "scheduler.pt"


def forward_arguments(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rows of a dataset as the arguments of a model's forward.

    Args:
        rows: see :func:`plait.data.packing.collate`.

    Returns:
        ``input_ids`` and ``shift_labels`` ``(B, T)``; with separate documents ``(1, B * T)`` and ``cu_seqlens``.
    """
    batch = collate(rows)
    batch["shift_labels"] = batch.pop("targets")
    return batch


class PlaitTrainer(Trainer):
    """Trains a causal model whose forward takes ``shift_labels`` and returns their mean loss.

    Args:
        model: the model.
        args: arguments of transformers, with the rows of this process; saving and logging are driven by ``training``.
        config: the run, with the rates, the intervals and how many checkpoints stay.
        train_dataset: one row per sample of the whole run, in order.
        validation_dataset: rows for the loss every ``validate_every`` steps, or None.
        tokenizer: saved with every checkpoint; None for a synthetic task.
        callbacks: told of every step, after the flow of the run is decided.
        stop: asked after each step; True in one process makes all of them save a checkpoint and end the loop.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        config: RunConfig,
        train_dataset: Dataset,
        validation_dataset: Dataset | None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.sharded = sharding.is_sharded(model)
        if self.sharded:
            model._is_accelerate_prepared = True  # type: ignore[assignment]  # or accelerate would wrap it in DDP
        flow, mixers = _Flow(config.training, self._stopped), MixerCallback()
        super().__init__(
            model,
            args,
            forward_arguments,
            train_dataset,
            processing_class=tokenizer,
            callbacks=[flow, mixers, *callbacks],
        )
        self.auxiliary = mixers.losses
        self.groups = training_groups(model, config.training)
        for noisy in (DefaultFlowCallback, PrinterCallback):
            self.remove_callback(noisy)
        self.model_accepts_loss_kwargs = True  # compute_loss weighs the batches of an accumulation itself
        self.run_config, self.training = config, config.training
        self.network = model
        self.validation_dataset = validation_dataset
        self.folder = Path(str(args.output_dir))
        self.step_loss: Tensor | None = None
        self.step_tokens = 0
        self.last_loss = math.nan
        self.window_loss, self.window_steps = 0.0, 0
        self.tokens, self.seconds = 0, 0.0
        self._metrics: MetricsFile | None = None
        self._stop, self._all_stop = stop, False
        self._started = self._logged_at = time.perf_counter()
        self._logged_tokens = 0

    def run(self, checkpoint: Path | None) -> None:
        """Train to the last step, from ``checkpoint`` or from the start.

        Raises:
            TrainingError: a loss or gradient that is not finite.
        """
        step = 0
        if checkpoint is not None:
            state = read_back(checkpoint / STATE_FILE)
            step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
            self.window_loss, self.window_steps = state["window_loss"], state["window_steps"]
            if isinstance(self.train_dataset, StreamedTokens):
                self.train_dataset.restore(state["stream"])
        self._metrics = MetricsFile(self.folder, step, checkpoint) if self.args.should_save else None
        self._started = self._logged_at = time.perf_counter()
        self._logged_tokens = self.tokens
        self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        self.seconds = self.elapsed

    @property
    def elapsed(self) -> float:
        """Seconds of training, over all resumptions."""
        return self.seconds + time.perf_counter() - self._started

    @property
    def rows_per_step(self) -> int:
        """Sequences per optimiser step, over all processes."""
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * self.accelerator.num_processes

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        rows = len(self.train_dataset)  # type: ignore[arg-type]
        return DealtSampler(rows, self.args.train_batch_size, self.accelerator.num_processes)

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not self.sharded:  # a sharded model is where it belongs, and cannot be moved
            super()._move_model_to_device(model, device)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = build_optimiser(model or self.network, self.training)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            self.lr_scheduler = build_schedule(optimizer or self.optimizer, self.training)  # type: ignore[arg-type]
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # would walk over all parameters at every step

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """Targets of all batches of one optimiser step, over all processes; None where one batch is all of it."""
        if self.args.gradient_accumulation_steps == 1 and self.accelerator.num_processes == 1:
            return None
        count = torch.stack([(batch["shift_labels"] != IGNORED).sum() for batch in batch_samples]).sum()
        if self.accelerator.num_processes > 1:
            count = self.accelerator.gather(count.to(device)).sum()
        return count

    def compute_loss(
        self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean loss over the targets, weighed so that the batches of one step add up to the mean over all of them."""
        with self.accelerator.autocast():  # which accelerate adds only to a model that it has wrapped
            outputs = model(**inputs, use_cache=False)
        loss = outputs["loss"]
        if num_items_in_batch is not None:
            targets = (inputs["shift_labels"] != IGNORED).sum()
            loss = loss * (targets * self.accelerator.num_processes / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch: Any = None) -> Tensor:
        self.step_tokens += inputs["input_ids"].numel()
        loss = super().training_step(model, inputs, num_items_in_batch)
        drop_frozen_gradients(self.network, self.groups, self.state.global_step)
        self.step_loss = loss if self.step_loss is None else self.step_loss + loss
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float:
        """The gradient's norm; stops the run before the optimiser sees a loss or gradient that is not finite."""
        norm = super()._get_grad_norm(model, grad_norm)
        assert self.step_loss is not None
        norm = sharding.whole(torch.as_tensor(norm, device=self.step_loss.device))
        loss, size = torch.stack([self.step_loss.float(), norm.float()]).tolist()
        total, tokens, stops = self._over_processes(loss, self.step_tokens, self._stop())
        loss = total / self.accelerator.num_processes
        self.tokens += int(tokens)
        self._all_stop = stops > 0
        self.step_loss, self.step_tokens = None, 0
        if not (math.isfinite(loss) and math.isfinite(size)):
            raise TrainingError(self._not_finite(loss, size))
        self.last_loss = loss
        self.window_loss += loss
        self.window_steps += 1
        return size

    def _over_processes(self, *values: float) -> list[float]:
        """Sums over all processes."""
        if self.accelerator.num_processes == 1:
            return list(values)
        mine = torch.tensor(values, dtype=torch.float64, device=self.args.device)
        sums: list[float] = self.accelerator.reduce(mine, "sum").tolist()
        return sums

    def _stopped(self) -> bool:
        """Whether to stop after this step; processes that were told at different steps stop at the same one."""
        return self._all_stop if self.accelerator.num_processes > 1 else self._stop()

    def _not_finite(self, loss: float, norm: float) -> str:
        what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {norm} (loss {loss:.4g})"
        bad = [
            name
            for name, p in self.network.named_parameters()
            if p.grad is not None and not sharding.whole(p.grad).isfinite().all()
        ]
        where = f" Gradients that are not finite: {', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}." if bad else ""
        saved = checkpoints(self.folder)
        good = f"The last good checkpoint is {saved[-1]}." if saved else "No checkpoint had been saved yet."
        return (
            f"Step {self.state.global_step + 1}: the {what}.{where} {good} Try a lower learning rate "
            f"(now {self.training.learning_rate:g}), more warm-up steps (now {self.training.warmup_steps}), a smaller "
            f"clip (now {self.training.clip:g}) or precision: fp32, in a new folder."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One record of the window since the last one; the summary that transformers logs at the end is dropped."""
        if "loss" not in logs:
            return
        now = time.perf_counter()
        mean = self.window_loss / max(1, self.window_steps)
        speed = (self.tokens - self._logged_tokens) / max(now - self._logged_at, 1e-9)
        self.window_loss, self.window_steps = 0.0, 0
        self._logged_at, self._logged_tokens = now, self.tokens
        record = {"loss": mean, "lr": logs["learning_rate"], "grad_norm": logs["grad_norm"]}
        record |= {"tokens_per_second": round(speed, 1), **self.auxiliary.take()}
        self._write(record)
        super().log(record)

    def _write(self, record: Mapping[str, float]) -> None:
        if self._metrics is not None:
            self._metrics.write({"step": self.state.global_step, **record})

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Mean loss over the validation rows, which the processes share; the same number in each."""
        assert self.validation_dataset is not None
        rows, size = self.validation_dataset, self.args.per_device_train_batch_size
        end, process, processes = len(rows), self.args.process_index, self.accelerator.num_processes  # type: ignore[arg-type]
        total, count = 0.0, 0
        self.network.eval()
        with torch.no_grad():
            for start in range(0, end, size * processes):
                mine = range(start + process * size, min(start + (process + 1) * size, end))
                # a process without rows runs one that does not count: a sharded model needs all of them
                batch = forward_arguments([rows[index] for index in mine or range(1)])
                targets = int((batch["shift_labels"] != IGNORED).sum()) if mine else 0
                inputs = self._prepare_inputs(batch) | {"skip_logits": True}
                total += self.compute_loss(self.network, inputs).item() * targets
                count += targets
        if self.sharded:
            self.network.reshard()  # type: ignore[operator]  # only a backward pass would do it
        total, targets_of_all = self._over_processes(total, count)
        loss = total / targets_of_all
        metrics = {"eval_loss": loss}
        self._write({"validation_loss": loss})
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the weights, sharded or not; transformers would first compare the configuration with its layer types."""
        sharding.load_weights(Path(resume_from_checkpoint), self.network)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            sharding.load_optimiser(Path(checkpoint), self.network, self.optimizer.optimizer)  # type: ignore[union-attr]
            schedule = torch.load(Path(checkpoint) / SCHEDULE_FILE, weights_only=True)
            # what was saved is the rate of the schedule before; the number of steps may have been raised
            optimiser: Any = self.optimizer
            schedule["_last_lr"] = set_rate(optimiser, schedule["last_epoch"], self.training, self.groups)
            self.lr_scheduler.load_state_dict(schedule)  # type: ignore[union-attr]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """This process's random state; on another number of processes a new one of seed, step and process."""
        processes, process = self.accelerator.num_processes, self.args.process_index
        if checkpoint is None:
            return
        if read_back(Path(checkpoint) / STATE_FILE).get("processes", processes) == processes:
            super()._load_rng_state(checkpoint)
        else:
            set_seed(stable_hash("resumed", self.args.seed, self.state.global_step, process) % 2**32)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Weights as ``training.parallel`` wants them: in one file, or with the optimiser's states in sharded ones."""
        if not self._saves_shards:
            super().save_model(output_dir, _internal_call)
            return
        folder = Path(output_dir or self.folder)
        sharding.save(folder / SHARDED_FOLDER, self.network, self.optimizer.optimizer)  # type: ignore[union-attr]
        if self.args.should_save:
            self.network.config.save_pretrained(folder)  # type: ignore[operator, union-attr]
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._saves_shards:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULE_FILE)  # type: ignore[union-attr]

    @property
    def _saves_shards(self) -> bool:
        return self.training.parallel == "fsdp"

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save what the run needs to go on; the checkpoint gets its name when all of it is on disk."""
        partial, final = self.folder / f"{PARTIAL}-checkpoint", self.folder / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.store_flos()
        self.save_model(str(partial), _internal_call=True)
        self._save_optimizer_and_scheduler(str(partial))
        self._save_scaler(str(partial))
        self._save_rng_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.state.save_to_json(str(partial / TRAINER_STATE_NAME))
            state = {
                "step": self.state.global_step,
                "samples": self.state.global_step * self.rows_per_step,
                "processes": self.accelerator.num_processes,
                "tokens": self.tokens,
                "seconds": self.elapsed,
                "window_loss": self.window_loss,
                "window_steps": self.window_steps,
            }
            if isinstance(self.train_dataset, StreamedTokens):
                state["stream"] = self.train_dataset.position(state["samples"])
            write_json(partial / STATE_FILE, state)
            write_run_file(partial, self.run_config)
            shutil.copyfile(self.folder / METRICS, partial / METRICS)
            publish_folder(partial, final)
            rotate(self.folder, self.training.keep)
        self.accelerator.wait_for_everyone()


class _Flow(TrainerCallback):
    """Decides after each step whether to log, to validate, to save, to stop."""

    def __init__(self, training: TrainingSection, stop: Callable[[], bool]) -> None:
        self.training, self.stop = training, stop

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        step, training = state.global_step, self.training
        last = step >= training.steps
        stopped = self.stop()
        control.should_log = last or step % training.log_every == 0
        control.should_evaluate = bool(training.validate_every) and step % training.validate_every == 0
        control.should_save = last or stopped or step % training.save_every == 0
        control.should_training_stop = last or stopped
        return control

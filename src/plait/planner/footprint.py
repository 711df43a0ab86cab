"""How much memory a block and the loss take in one training step: their own code runs on tensors without data.

Forward and backward of the real modules run on fake tensors, which have shapes but no memory, and every tensor that
autograd keeps or that an operation makes is counted. So no formula stands here that a change of a mixer would outdate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from plait.mixers.context import Context
from plait.models.configuration import LayerSpec, PlaitConfig
from plait.models.cost import count_parameters
from plait.models.decoder import Block
from plait.models.loss import PIECE_BYTES, PLAIN_BYTES, cross_entropy, fits
from plait.models.pretrained import SharedParameters
from plait.nn import RMSNorm
from plait.ops import backend
from plait.planner.allocations import Allocations
from plait.runs.config import TrainingSection

#: Larger batches and longer sequences are extended from these: beyond them, memory grows by the same per token.
LARGEST_BATCH, LONGEST_RUN = 4, 2048


@dataclass(frozen=True)
class TrainingSetting:
    """One training step of one device.

    Args:
        batch: sequences in one forward pass.
        length: tokens of each.
        precision: ``fp32``, or ``bf16`` by autocast, where weights, gradients and optimiser stay fp32.
        checkpointing: recompute each block in the backward pass.
        accumulates: whether gradients of earlier batches are there already.
        backend: of the recurrences, as in :func:`plait.ops.backend`; ``auto`` is what this machine's CPU takes.
    """

    batch: int
    length: int
    precision: str = "bf16"
    checkpointing: bool = False
    accumulates: bool = False
    backend: str = "auto"

    @classmethod
    def of(cls, training: TrainingSection, length: int, backend: str = "auto") -> TrainingSetting:
        """What a run file's section asks of one device; ``auto`` precision is taken as bf16."""
        precision = "fp32" if training.precision == "fp32" else "bf16"
        checkpointing, accumulates = training.gradient_checkpointing, training.accumulate > 1
        return cls(training.batch_size, length, precision, checkpointing, accumulates, backend)


@dataclass(frozen=True)
class Footprint:
    """Bytes of one part of the model in a training step, beyond parameters and what comes in.

    Args:
        parameters: of the part.
        gradients: its gradients that are new in this step; none where earlier batches have left them.
        forward: most that is alive at one moment of the forward pass.
        kept_in_forward: alive after it, while the forward pass of the model goes on (autocast keeps copies of weights).
        kept: what of that waits for the backward pass, the part's output included.
        backward: most that is alive in the backward pass, ``kept``, gradients and the gradient that comes in included.
    """

    parameters: int
    gradients: int
    forward: int
    kept_in_forward: int
    kept: int
    backward: int

    @staticmethod
    def line(terms: Sequence[tuple[float, Footprint]]) -> Footprint:
        """The sum of footprints of one part at several sizes, each times its factor; the factors add up to 1."""

        def at(name: str) -> int:
            return round(sum(factor * getattr(footprint, name) for factor, footprint in terms))

        grows = ("forward", "kept_in_forward", "kept", "backward")
        return replace(terms[0][1], **{name: at(name) for name in grows})


Measure = Callable[[TrainingSetting], Footprint]


class Footprints:
    """Footprints of the parts of models, each measured once, and the parameters of each model, counted once."""

    def __init__(self) -> None:
        self._counted: dict[str, int] = {}
        self._found: dict[tuple[str, TrainingSetting], Footprint] = {}

    def parameters(self, config: PlaitConfig) -> int:
        """Of the whole model, tied ones once."""
        name = config.to_json_string()
        if name not in self._counted:
            self._counted[name] = count_parameters(config)
        return self._counted[name]

    def block(self, config: PlaitConfig, spec: LayerSpec, setting: TrainingSetting) -> Footprint:
        """Of one block of the model with this mixer."""
        post_norm = spec.name in (config.post_norm or ())
        name = f"{spec.mixer} {spec.options} {config.dims} {config.mlp_size} {post_norm}"
        return self._find(name, setting, partial(_block, config, spec))

    def head(self, config: PlaitConfig, setting: TrainingSetting) -> Footprint:
        """Of the last norm, the output head and the loss."""
        name = f"head {config.hidden_size} {config.vocab_size}"
        tokens, rows = setting.batch * setting.length, PIECE_BYTES // (4 * config.vocab_size)
        flat = replace(setting, batch=1, length=tokens, checkpointing=False)
        measure = partial(_head, config)
        few = PLAIN_BYTES // PIECE_BYTES + 1  # pieces, the fewest that are made one by one
        if fits(tokens, config.vocab_size) or tokens <= (few + 1) * rows:
            return self._find(name, flat, measure)
        return self._between(name, flat, measure, (few * rows, (few + 1) * rows))

    def _find(self, name: str, setting: TrainingSetting, measure: Measure) -> Footprint:
        key = (name, setting)
        if key not in self._found:
            if (setting.length <= LONGEST_RUN and setting.batch <= LARGEST_BATCH) or name.startswith("head"):
                self._found[key] = measure(setting)
            else:
                self._found[key] = self._extended(name, setting, measure)
        return self._found[key]

    def _extended(self, name: str, setting: TrainingSetting, measure: Measure) -> Footprint:
        """``a + b B + c B T``, from one and two rows of half the longest run and one row of all of it."""
        half, batch = LONGEST_RUN // 2, setting.batch
        one, two, longer = (
            self._find(name, replace(setting, batch=rows, length=length), measure)
            for rows, length in ((1, half), (2, half), (1, 2 * half))
        )
        tokens = batch * (setting.length / half - 1)
        return Footprint.line([(2 - batch - tokens, one), (batch - 1, two), (tokens, longer)])

    def _between(self, name: str, setting: TrainingSetting, measure: Measure, lengths: tuple[int, int]) -> Footprint:
        first, second = lengths
        low, high = (self._find(name, replace(setting, length=length), measure) for length in lengths)
        share = (setting.length - first) / (second - first)
        return Footprint.line([(1 - share, low), (share, high)])


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of all."""
    return sum(tensor.nbytes for tensor in tensors)


def _block(config: PlaitConfig, spec: LayerSpec, setting: TrainingSetting) -> Footprint:
    with FakeTensorMode(), backend(setting.backend):
        block = Block(config, spec, 0).train()
        if setting.checkpointing:
            block.gradient_checkpointing = True
            recompute = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
            block._gradient_checkpointing_func = recompute  # type: ignore[assignment]
        shared = SharedParameters(config, spec)()
        x = torch.empty(setting.batch, setting.length, config.hidden_size, requires_grad=True)
        context = Context.plain(x)
        with torch.no_grad(), _precision(setting):
            block._compute(x, context, shared)  # tables that all layers share, such as the rotary one, are made here
        return _measure(block, lambda: block(x, context.for_layer(None), shared), setting)


def _head(config: PlaitConfig, setting: TrainingSetting) -> Footprint:
    with FakeTensorMode():
        part = nn.ModuleList(
            [RMSNorm(config.hidden_size), nn.Linear(config.hidden_size, config.vocab_size, bias=False)]
        )
        norm, head = part
        x = torch.empty(setting.batch, setting.length, config.hidden_size, requires_grad=True)
        targets = torch.zeros(setting.batch, setting.length, dtype=torch.long)

        def loss() -> Tensor:
            hidden = norm(x)
            logits = head(hidden) if fits(targets.numel(), config.vocab_size) else None
            return cross_entropy(head, hidden, targets, vocab_size=config.vocab_size, logits=logits)

        return _measure(part, loss, setting)


def _measure(part: nn.Module, forward: Callable[[], Tensor], setting: TrainingSetting) -> Footprint:
    """Run forward and backward once."""
    parameters = list(part.parameters())
    if setting.accumulates:
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
    with Allocations() as counted:
        with _precision(setting):
            y = forward()
            kept_in_forward = counted.live
        forward_peak, kept = counted.peak, counted.live
        with counted.paused():
            weights = torch.empty_like(y)
        loss = (y * weights).sum()  # its backward hands a gradient of y's shape to the part, and keeps no y
        del y
        counted.restart()
        loss.backward()
        backward_peak = counted.peak
    gradients = 0 if setting.accumulates else nbytes(parameters)
    return Footprint(nbytes(parameters), gradients, forward_peak, kept_in_forward, kept, backward_peak)


def _precision(setting: TrainingSetting) -> AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16) if setting.precision == "bf16" else nullcontext()

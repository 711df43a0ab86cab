"""Finds the heads that DuoAttention keeps full (2410.10819, section 2.2): one trained gate for each kv head.

With the gate at 1 a head attends everything, at 0 it streams. The model is frozen; the gates are pushed to 0 while the
final hidden states at the answers must stay as they are, and what resists needs full attention.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from plait.errors import DataError, OptionError
from plait.options import Options
from plait.policies.head_table import HeadTable
from plait.runtime.applied import Applied
from plait.runtime.call import Call, LayerInfo, ModelInfo
from plait.runtime.dense import Dense
from plait.runtime.policy import CalibrationRow
from plait.runtime.products import attend_band

#: The rate rises over the first fifth of the steps from a tenth, and falls back over the last fifth.
RAMP, LEAST = 5, 0.1


@dataclass(frozen=True)
class FindHeadsOptions(Options):
    """Options of :func:`find_heads`; as published, or with the preset ``small`` for a model of a few layers.

    Args:
        sinks, recent: what streaming heads see while gates are trained, the query's own token among the recent ones.
        steps: of the optimiser.
        batch_size: rows of a step.
        learning_rate: its peak.
        regularisation: weight of the mean gate in the loss.
        full: whose full attention is mixed in: that of the unmodified model (the authors' code), or that of the
            mixed hidden states themselves (``own``: the paper's formula, twice the attention).

    Raises:
        OptionError: a value out of range.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "small": {"sinks": 4, "recent": 16, "steps": 300, "batch_size": 4},
    }

    sinks: int = 128
    recent: int = 256
    steps: int = 2000
    batch_size: int = 1
    learning_rate: float = 0.02
    regularisation: float = 0.05
    full: Literal["teacher", "own"] = "teacher"

    def __post_init__(self) -> None:
        least = {"sinks": 0, "recent": 1, "steps": 1, "batch_size": 1, "learning_rate": 0, "regularisation": 0}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise OptionError(f"find_heads: {name}={getattr(self, name)} must be {lowest} or more.")


class GatedHeads(Dense):
    """Attention of each kv head between full and streaming: ``gate * full + (1 - gate) * streaming``.

    Each text is read twice: first with :attr:`teaching`, where attention is dense and its outputs are kept, then with
    the gates. Layers with a window of their own stream already and have no gate.

    Args:
        options: see :class:`FindHeadsOptions`.
    """

    def __init__(self, options: FindHeadsOptions) -> None:
        super().__init__()
        self.calibration = options
        self.teaching = False
        #: ``(G,)`` in fp32 by layer: in bf16 small steps near 1 would be lost.
        self.gates: dict[int, nn.Parameter] = {}
        self._taught: dict[int, Tensor] = {}

    def bind(self, model: ModelInfo) -> None:
        self.gates = {
            layer.index: nn.Parameter(torch.ones(layer.kv_heads)) for layer in model.layers if self.serves(layer)
        }

    def serves(self, layer: LayerInfo) -> bool:
        return layer.window is None

    def attend(self, call: Call) -> Tensor:
        self.write(call)
        keys, index = self.keys(call), call.layer.index
        if self.teaching:
            full = attend_band(call, keys)
            if self.calibration.full == "teacher":
                self._taught[index] = full
            return full
        streaming = attend_band(call, keys, window=self.calibration.recent, sinks=self.calibration.sinks)
        full = self._taught.pop(index) if self.calibration.full == "teacher" else attend_band(call, keys)
        gate = self.gates[index].to(full.device).repeat_interleave(call.layer.group)[:, None, None]
        return (gate * full + (1 - gate) * streaming).to(full.dtype)

    def penalty(self) -> Tensor:
        """Mean of all gates' absolute values."""
        return torch.cat(list(self.gates.values())).abs().mean()

    @torch.no_grad()
    def clamp(self) -> None:
        """Put the gates back into [0, 1]."""
        for gate in self.gates.values():
            gate.clamp_(0, 1)

    def table(self, model: ModelInfo) -> HeadTable:
        """The gates as a table of this model; heads of layers with a window are 0."""
        rows = [self.gates[x.index].tolist() if x.index in self.gates else [0.0] * x.kv_heads for x in model.layers]
        return HeadTable(tuple(map(tuple, rows)), model.fingerprint, "the table of find_heads", model.weights)


def find_heads(
    model: PreTrainedModel,
    rows: Iterable[CalibrationRow],
    options: FindHeadsOptions | None = None,
    *,
    announce: Callable[[str], None] = lambda line: None,
) -> HeadTable:
    """How much each kv head needs full attention, as the policy ``duo_attention`` takes it in its option ``heads``.

    Args:
        model: a decoder that can run under a policy; its weights and settings stay as they are.
        rows: at least ``steps * batch_size``; those of one step have one length. See
            :func:`~plait.policies.task_rows` and :func:`~plait.policies.passkey_rows`.
        options: None for the published ones.
        announce: told of progress, a line at a time.

    Returns:
        A gate in [0, 1] for each layer and kv head, with the model's fingerprint.

    Raises:
        OptionError: the model cannot run under a policy, or has no layer to gate.
        DataError: too few rows, rows of different lengths in one step, or one without a label.
    """
    options = options or FindHeadsOptions()
    policy = GatedHeads(options)
    with _frozen(model), torch.enable_grad(), Applied(model, policy, "find_heads") as applied:
        assert applied.info is not None
        optimiser = torch.optim.AdamW(policy.gates.values(), lr=options.learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_factor(step, options.steps))
        for step, (ids, labelled) in enumerate(_batches(rows, options)):
            distance = hidden_distance(model, policy, ids, labelled)
            optimiser.zero_grad()
            (distance + options.regularisation * policy.penalty()).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            policy.clamp()
            if (step + 1) % max(1, options.steps // 10) == 0:
                mean = policy.penalty().item()
                announce(f"step {step + 1} of {options.steps}: distance {distance.item():.2e}, mean gate {mean:.3f}")
        return policy.table(applied.info)


def rate_factor(step: int, steps: int) -> float:
    """The learning rate at a step, as a share of its peak."""
    ramp = steps / RAMP
    return min(1.0, max((step + 1) / ramp, LEAST), max((steps - step) / ramp, LEAST))


def hidden_distance(model: PreTrainedModel, policy: GatedHeads, ids: Tensor, labelled: Tensor) -> Tensor:
    """Mean square by which the gates move the final hidden states at labelled positions, in fp32.

    Args:
        model: with ``policy`` in force.
        policy: the gates.
        ids: ``(B, T)``.
        labelled: ``(B, T)`` bool.
    """
    kept = ids.shape[1] - int(labelled.any(0).nonzero()[0])
    policy.teaching = True
    with torch.no_grad():
        wanted = _hidden(model, ids, kept)
    policy.teaching = False
    found = _hidden(model, ids, kept)
    labels = labelled[:, -kept:].to(found.device)
    return (found.float() - wanted.float()).square().mean(-1)[labels].mean()


def _hidden(model: PreTrainedModel, ids: Tensor, kept: int) -> Tensor:
    """``(B, kept, d)``: what the language-model head is given at the last ``kept`` positions."""
    head = model.get_output_embeddings()
    if head is None:
        raise OptionError(f"{type(model).__name__} has no language-model head: load it as a causal language model.")
    seen: list[Tensor] = []
    few = {"logits_to_keep": kept} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    handle = head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        model(input_ids=ids.to(model.device), use_cache=False, **few)
    finally:
        handle.remove()
    return seen[0][:, -kept:]


def _batches(rows: Iterable[CalibrationRow], options: FindHeadsOptions) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids and labels ``(B, T)`` of each step."""
    source = iter(rows)
    for step in range(options.steps):
        batch = list(islice(source, options.batch_size))
        if len(batch) < options.batch_size:
            raise DataError(
                f"find_heads: the rows end at step {step} of {options.steps}: give "
                f"{options.steps * options.batch_size} rows, or fewer steps."
            )
        lengths = sorted({len(row.ids) for row in batch})
        if len(lengths) > 1:
            raise DataError(
                f"find_heads: rows of {lengths} tokens in one step: use batch_size 1 or rows of one length."
            )
        if not all(bool(row.labelled.any()) for row in batch):
            raise DataError(f"find_heads: a row of step {step} has no labelled position.")
        yield torch.stack([row.ids for row in batch]), torch.stack([row.labelled for row in batch])


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """The model without dropout and without gradients of its own."""
    training = [(module, module.training) for module in model.modules()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, was in training:
            module.training = was

"""What each stage minimises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.conversion.loop import Batch
from plait.data.packing import IGNORED
from plait.mixers.context import Context
from plait.models import PlaitForCausalLM


class Alignment:
    """Mean over layers of the squared difference between a twin's output and the teacher's, on the teacher's inputs.

    The teacher's outputs go on to its next layer, so every twin is taught by itself (HALO, 2601.22156, stage 1;
    LoLCATs and Lizard, 2507.09025, stage 1).

    Args:
        teacher: its parameters need no gradient.
        student: its mixers in ``layers`` are trained.
        layers: which.
        after_projection: compare mixers' outputs; otherwise the heads' outputs before the output projection.
        relative: divide each layer's error by the mean square of the teacher's output.
    """

    def __init__(
        self,
        teacher: PlaitForCausalLM,
        student: PlaitForCausalLM,
        layers: Sequence[int],
        *,
        after_projection: bool,
        relative: bool,
    ) -> None:
        self.teacher, self.student, self.layers = teacher, student, layers
        self.after_projection, self.relative = after_projection, relative

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The loss, and the error of each layer by ``layer_N``."""
        attentions = {index: self.teacher.model.layers[index].attn for index in self.layers}
        with torch.no_grad(), ExitStack() as stack:
            calls = {index: stack.enter_context(watched(mixer)) for index, mixer in attentions.items()}  # type: ignore[arg-type]
            self.teacher.model(**batch.inputs, use_cache=False)
        errors = []
        for index in self.layers:
            with watched(self.student.model.layers[index].attn) as call:  # type: ignore[arg-type]
                self.student.model.layers[index].attn(calls[index].x, calls[index].context)
            wanted, given = (c.output if self.after_projection else c.heads for c in (calls[index], call))
            wanted, given = wanted[batch.real].float(), given[batch.real].float()
            error = (given - wanted).square().mean()
            errors.append(error / wanted.square().mean() if self.relative else error)
        details = {f"layer_{index}": error.item() for index, error in zip(self.layers, errors, strict=True)}
        return torch.stack(errors).mean(), details


class Call:
    """One pass through a mixer: input ``x`` and its ``context``, ``heads`` before the output projection, ``output``."""

    x: Tensor
    context: Context
    heads: Tensor
    output: Tensor


@contextmanager
def watched(mixer: nn.Module) -> Iterator[Call]:
    """Note what passes through ``mixer``, which has an output projection ``o_proj``."""
    call = Call()

    def enter(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        call.heads = given[0]

    def leave(module: nn.Module, given: tuple[Tensor, Context], output: Tensor) -> None:
        call.x, call.context, call.output = *given, output

    handles = [
        mixer.o_proj.register_forward_pre_hook(enter),  # type: ignore[union-attr, operator]
        mixer.register_forward_hook(leave),
    ]
    try:
        yield call
    finally:
        for handle in handles:
            handle.remove()


class Distillation:
    """``KL(teacher || student)`` of the next token, the mean over all that count (HALO, 2601.22156, stage 2).

    In a text every token counts. What has no target, such as the pairs of a recall task, was never taught: the
    teacher's guess there means nothing, and copying it would cost the student most of its effort.

    Args:
        teacher: its parameters need no gradient.
        student: is trained.
    """

    def __init__(self, teacher: PlaitForCausalLM, student: PlaitForCausalLM) -> None:
        self.teacher, self.student = teacher, student

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The loss in nats per token."""
        counted = batch.targets != IGNORED
        with torch.no_grad():
            wanted = self.teacher(**batch.inputs, use_cache=False).logits[counted]
        given = self.student(**batch.inputs, use_cache=False).logits[counted]
        return divergence(wanted, given), {}


def divergence(wanted: Tensor, given: Tensor) -> Tensor:
    """``sum_w p(w) (log p(w) - log q(w))`` for rows of logits ``(N, vocab)``, p of ``wanted``; the mean over rows."""
    p, q = F.log_softmax(wanted.float(), dim=-1), F.log_softmax(given.float(), dim=-1)
    return F.kl_div(q, p, log_target=True, reduction="batchmean")


class NextToken:
    """Cross entropy of the targets, the mean over those that count.

    Args:
        student: is trained.
    """

    def __init__(self, student: nn.Module) -> None:
        self.student = student

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The loss in nats per target."""
        return self.student(**batch.inputs, shift_labels=batch.targets, use_cache=False).loss, {}

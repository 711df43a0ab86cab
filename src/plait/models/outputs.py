"""What the models return."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from plait.mixers.shard import SequenceShard


@dataclass
class PlaitModelOutput(BaseModelOutputWithPast):
    """Output of :class:`PlaitModel`.

    Args:
        losses: auxiliary losses of the mixers by name, in training.
        weighted: the same, each times its weight.
        cu_seqlens: document borders that were found, or None.
        sequence: the ways to the processes that hold the rest of each row, or None.
    """

    losses: dict[str, Tensor] | None = None
    weighted: dict[str, Tensor] | None = None
    cu_seqlens: Tensor | None = None
    sequence: SequenceShard | None = None


@dataclass
class PlaitCausalOutput(CausalLMOutputWithPast):
    """Output of :class:`PlaitForCausalLM`: that of transformers, and what mixers add to the loss in training.

    Args:
        losses: auxiliary losses of the mixers by name, before their weights.
        aux_loss: what they add to ``loss``: their weighted sum, scaled as the targets' loss is.
    """

    losses: dict[str, Tensor] | None = None
    aux_loss: Tensor | None = None


__all__ = ["PlaitCausalOutput", "PlaitModelOutput"]

"""A pass on one piece of the sequence, under ``plait.distributed.sequence_parallel``: entering it, and the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plait import catalog
from plait.errors import OptionError
from plait.mixers.shard import SequenceShard, active_shards
from plait.models.configuration import PlaitConfig
from plait.models.loss import IGNORED


def enter(
    config: PlaitConfig,
    x: Tensor,
    *,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    cache: Any,
    use_cache: bool | None,
) -> SequenceShard | None:
    """The shard of this pass, or None where no other process holds a piece.

    Args:
        config: of the model, whose mixers must all run on pieces.
        x: embeddings ``(B, n, d)`` of this process's piece.
        attention_mask, position_ids, cu_seqlens, cache, use_cache: what the caller gave the model.

    Raises:
        OptionError: in every process, when one of them has what a piece cannot: a cache, padding, packed documents,
            position ids, no tokens, or a mixer that needs the whole sequence.
    """
    shards = active_shards()
    if shards is None:
        return None
    mixers = {spec.mixer for spec in config.layers()}
    unfit = sorted(name for name in mixers if not catalog.get(name).shards_sequence)
    refusal = None
    if unfit:
        refusal = f"{', '.join(unfit)} cannot run on a piece of a sequence; use another mixer, or one process"
    elif cache is not None or use_cache:
        refusal = "there is no cache and no generation on pieces of a sequence; pass use_cache=False"
    elif cu_seqlens is not None:
        refusal = "documents (cu_seqlens) cannot be packed into pieces of a sequence; pass one document a row"
    elif position_ids is not None:
        refusal = "positions are counted across the pieces; leave out position_ids"
    elif attention_mask is not None and not bool((attention_mask == 1).all()):
        refusal = "rows have padding; pass rows of one length, with -100 as label where no target counts"
    return shards.enter(x, refusal)


def place_following(shard: SequenceShard, labels: Tensor, targets: Tensor) -> Tensor:
    """``targets`` with the next piece's first label as the last one's."""
    return torch.cat([targets[:, :-1], shard.following(labels, IGNORED)], dim=1)


def count_targets(shard: SequenceShard, targets: Tensor) -> Tensor:
    """How many targets count in all pieces, 1 at least."""
    return shard.total((targets != IGNORED).sum()).clamp(min=1)


def sum_loss(shard: SequenceShard, loss: Tensor, auxiliary: dict[str, Tensor] | None) -> Tensor:
    """The loss of the whole sequence from this piece's.

    Raises:
        OptionError: a mixer adds a loss of its own, which has no meaning on a piece.
    """
    if auxiliary:
        raise OptionError(
            f"Sequence parallelism: no loss beside the model's can be computed, here {sorted(auxiliary)}."
        )
    return shard.total(loss)

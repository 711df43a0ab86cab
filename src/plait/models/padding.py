"""From what a user passes (masks, position ids, document borders) to what mixers expect, and back.

Mixers see padding only at the front of a row, or documents packed into one row. An :class:`Arrangement` holds
the moves: :meth:`Arrangement.inward` is applied to the embeddings, :meth:`Arrangement.outward` to the outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.errors import OptionError


@dataclass(frozen=True)
class Arrangement:
    """How the tokens of one call are laid out for the mixers.

    Args:
        index: ``(B, T)`` int64, number of each token in its own document, 0 at padding; ``(1, B T)`` when packed.
        positions: of the same shape, as the caller gave them, for rotary embeddings alone.
        seen: ``(B,)`` int64, tokens of each row before this call.
        padding: ``(B,)`` int64, padding slots at the front of each row, or None.
        cu_seqlens: ``(N + 1,)`` int64, document borders, or None.
        order: ``(B, T)``, the user's slot of each arranged slot, or None when nothing moves.
        rows: rows of the user's batch when documents were flattened into one row, else None.
    """

    index: Tensor
    positions: Tensor
    seen: Tensor
    padding: Tensor | None = None
    cu_seqlens: Tensor | None = None
    order: Tensor | None = None
    rows: int | None = None

    def inward(self, x: Tensor) -> Tensor:
        """``x`` ``(B, T, d)`` as the mixers want it."""
        if self.rows is not None:
            return x.reshape(1, -1, x.shape[-1])
        return x if self.order is None else _gather(x, self.order)

    def outward(self, x: Tensor) -> Tensor:
        """Outputs back where the user's tokens stand."""
        if self.rows is not None:
            return x.reshape(self.rows, -1, x.shape[-1])
        return x if self.order is None else _gather(x, torch.argsort(self.order, dim=1))

    def matrix_outward(self, weights: Tensor) -> Tensor:
        """Weights ``(B, H, T, S)`` of the arranged tokens, over them and what a cache holds, for the user's tokens.

        Raises:
            OptionError: there is a cache, whose slots stand in another order than those of this call.
        """
        if self.rows is not None:
            rows = weights.unflatten(3, (self.rows, -1)).unflatten(2, (self.rows, -1))
            return rows[0].diagonal(dim1=1, dim2=3).permute(3, 0, 1, 2)
        if self.order is None:
            return weights
        length = self.order.shape[1]
        if weights.shape[3] != length:
            raise OptionError("output_attentions=True with a filled cache needs padding in front of each row.")
        order = torch.argsort(self.order, dim=1)[:, None]
        weights = weights.gather(2, order[..., None].expand_as(weights))
        return weights.gather(3, order[:, :, None].expand_as(weights))


def arrange(
    batch: int,
    length: int,
    device: torch.device,
    *,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    past_slots: int = 0,
    past_padding: Tensor | None = None,
    cached: bool = False,
) -> Arrangement:
    """Check the arguments of one forward pass against each other and lay the tokens out.

    Args:
        batch, length: B and T of this call.
        device: where the tokens are.
        attention_mask: ``(B, T)`` or ``(B, past + T)``, 1 at real tokens and 0 at padding; or the number of each
            token's document in its row, from 1 up; or None.
        position_ids: ``(B, T)`` or ``(1, T)``; rows count up by one and may start anywhere; a restart at 0 begins
            a new document.
        cu_seqlens: borders of the documents in the rows laid end to end, or None.
        past_slots: slots that the cache has seen.
        past_padding: ``(B,)``, how many of them were padding in each row, or None for none.
        cached: whether a cache takes part.

    Raises:
        OptionError: shapes or entries that do not fit, documents together with padding or a cache, or two arguments
            that put borders of documents at different tokens.
    """
    if attention_mask is not None:
        attention_mask = attention_mask.to(device)
        _check_shape(attention_mask, batch, length, past_slots)
    if cu_seqlens is not None:
        cu_seqlens = _borders(cu_seqlens, batch, length, device)
    if position_ids is not None:
        position_ids = _expanded(position_ids.to(device), batch, length)
    numbered, counted = _numbered(attention_mask, length), True
    if attention_mask is not None and numbered is not None:
        _refuse_contradiction(cu_seqlens, numbered, "cu_seqlens", length)
        counted = not bool((attention_mask == 0).any())  # positions may go on over padding as they like
        cu_seqlens, attention_mask = numbered, None
    padding, order = _padding(attention_mask, length, past_slots, past_padding)
    if position_ids is not None and padding is None and not past_slots:
        if cu_seqlens is None:
            cu_seqlens = _restarts(position_ids)
        elif counted and not torch.compiler.is_compiling():
            found = _rows(_restarts(position_ids), batch, length, device)
            _refuse_contradiction(found, cu_seqlens, "position_ids", length)
    if cu_seqlens is not None:
        if padding is not None:
            raise OptionError(
                "Documents (cu_seqlens, or position_ids that restart) cannot be packed into rows that also have "
                "padding: leave out the padding, or pass one document per row with an attention_mask."
            )
        if cached:
            raise OptionError(
                "Documents (cu_seqlens, or position_ids that restart) cannot be packed when there is a cache: "
                "pass use_cache=False, or one document per row."
            )
        return _packed(_rows(cu_seqlens, batch, length, device), batch, length, device)
    seen = torch.full((batch,), past_slots, device=device) - (0 if past_padding is None else past_padding)
    slots = torch.arange(length, device=device).expand(batch, length)
    index = slots + seen[:, None]
    if padding is not None:
        index = (index - padding[:, None]).masked_fill(slots < padding[:, None], 0)
    positions = index if position_ids is None else _given(position_ids, order, padding, index)
    return Arrangement(index, positions, seen, padding, order=order)


def _gather(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(1, order[:, :, None].expand(-1, -1, x.shape[-1]))


def _check_shape(mask: Tensor, batch: int, length: int, past_slots: int) -> None:
    if mask.dim() == 2 and mask.shape[0] == batch and mask.shape[1] in (length, past_slots + length):
        return
    wanted = f"({batch}, {length})" + (f" or ({batch}, {past_slots + length})" if past_slots else "")
    which = "a mask of pairs, and every layer here is causal by itself" if mask.dim() > 2 else "not a row's tokens"
    raise OptionError(
        f"attention_mask has shape {tuple(mask.shape)}, {which}: give {wanted}, zero at padding, and the borders of "
        "documents as cu_seqlens or as position_ids that restart at 0."
    )


def _numbered(mask: Tensor | None, length: int) -> Tensor | None:
    """Borders from a mask whose entries number the documents of each row (1, 1, 2, 2; 0 at padding), or None.

    Padding then stands as documents of its own, which no other sees. Left out while a graph is captured, where a mask
    must hold 0 and 1.

    Raises:
        OptionError: entries that are neither 0 and 1 nor numbers of documents.
    """
    if mask is None or mask.dtype == torch.bool or torch.compiler.is_compiling() or bool((mask == 1).all()):
        return None
    fine = (mask == 0) | (mask == 1)
    floating = mask.is_floating_point()
    if bool(fine.all()) and not (floating and bool((mask == 0).all(1).any())):
        return None
    if floating and (bool((mask < 0).any()) or bool(fine.all())):
        raise OptionError(
            "attention_mask looks like one that is added to scores (0 keeps a token, a negative number hides it), but "
            "here 1 marks a real token and 0 padding: pass (mask == 0).long() instead."
        )
    whole = mask.isfinite() & (mask >= 0) & (mask == mask.round()) if floating else mask >= 0
    if not bool(whole.all()):
        row, column = (~whole).nonzero()[0].tolist()
        raise OptionError(
            f"attention_mask holds {mask[row, column].item():g} at row {row}, token {column}: it must be 1 at real "
            "tokens and 0 at padding, or number the documents of a row from 1 up."
        )
    if mask.shape[1] != length:
        raise OptionError(
            "attention_mask numbers documents (entries above 1), and documents cannot be packed when there is a "
            "cache: give 1 at real tokens and 0 at padding."
        )
    change = F.pad(mask.diff(dim=1) != 0, (1, 0), value=True)
    highest = mask.cummax(1).values
    late = (mask != 0) & (change & (mask <= F.pad(highest, (1, 0))[:, :-1]) | (mask < highest))
    if bool(late.any()):
        row, column = late.nonzero()[0].tolist()
        raise OptionError(
            f"attention_mask comes back to document {mask[row, column].item():g} at row {row}, token {column}: number "
            "the documents of a row in rising order, each in one piece."
        )
    borders = change.flatten().nonzero().flatten()
    return torch.cat([borders, borders.new_tensor([mask.numel()])])


def _refuse_contradiction(given: Tensor | None, borders: Tensor, name: str, length: int) -> None:
    """Two ways to say where documents begin must say the same."""
    if given is None or torch.equal(given, borders):
        return
    one, other = set(given.tolist()), set(borders.tolist())
    row, column = divmod(min(one ^ other), length)
    here, there = (name, "another argument") if min(one ^ other) in one else ("another argument", name)
    raise OptionError(
        f"Documents contradict: {here} begins one at row {row}, token {column}, and {there} does not. Say it once: "
        "cu_seqlens, position_ids that restart at 0, or an attention_mask that numbers documents."
    )


def _padding(
    mask: Tensor | None, length: int, past_slots: int, past_padding: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Padding per row among the new tokens, and the order that brings it to the front (None: already there).

    What depends on the mask's entries (a check, two short cuts) is left out while a graph is captured.
    """
    if mask is None:
        return None, None
    captured = torch.compiler.is_compiling()
    real = mask != 0
    if not captured and past_slots and mask.shape[1] == past_slots + length:
        masked = (~real[:, :past_slots]).sum(1)
        known = torch.zeros_like(masked) if past_padding is None else past_padding
        if bool((masked != known).any()):
            raise OptionError(
                f"attention_mask hides {masked.tolist()} of the {past_slots} cached slots of each row, but the cache "
                f"was filled with {known.tolist()} padding slots: give the prefix its own attention_mask when it is "
                "computed."
            )
    real = real[:, real.shape[1] - length :]
    if not captured and bool(real.all()):
        return None, None
    padding = length - real.sum(1)
    order = torch.argsort(real.to(torch.int8), dim=1, stable=True)
    in_place = torch.arange(length, device=real.device)
    return padding, None if not captured and bool((order == in_place).all()) else order


def _expanded(position_ids: Tensor, batch: int, length: int) -> Tensor:
    if position_ids.dim() != 2 or position_ids.shape[0] not in (1, batch) or position_ids.shape[1] != length:
        raise OptionError(
            f"position_ids has shape {tuple(position_ids.shape)}; it must be ({batch}, {length}) or (1, {length})."
        )
    return position_ids.long().expand(batch, length)


def _restarts(position_ids: Tensor) -> Tensor | None:
    """Document borders where positions restart at 0 inside a row, or None; anything else must count up by one."""
    if position_ids.shape[1] < 2:
        return None
    steps_by_one = position_ids.diff(dim=1) == 1
    if bool(steps_by_one.all()):
        return None
    restarts = position_ids == 0
    _refuse_jumps(steps_by_one | restarts[:, 1:], position_ids)
    restarts = restarts.clone()
    restarts[:, 0] = True
    borders = restarts.flatten().nonzero().flatten()
    return torch.cat([borders, borders.new_tensor([restarts.numel()])])


def _refuse_jumps(fine: Tensor, position_ids: Tensor) -> None:
    if bool(fine.all()):
        return
    row, column = (~fine).nonzero()[0].tolist()
    before, after = position_ids[row, column].item(), position_ids[row, column + 1].item()
    raise OptionError(
        f"position_ids jump from {before} to {after} at row {row}, token {column + 1}: they must count up by one, "
        "or restart at 0 where a new document begins."
    )


def _borders(cu_seqlens: Tensor, batch: int, length: int, device: torch.device) -> Tensor:
    """``cu_seqlens`` checked, with the ends of rows added."""
    total = batch * length
    borders = cu_seqlens.to(device).long()
    ordered = borders.dim() == 1 and len(borders) >= 2 and bool((borders.diff() > 0).all())
    if not ordered or int(borders[0]) != 0 or int(borders[-1]) != total:
        raise OptionError(
            f"cu_seqlens={cu_seqlens.tolist()} are not document borders: they must rise from 0 to {total}, "
            f"the number of tokens in the {batch} x {length} batch."
        )
    return _rows(borders, batch, length, device)


def _rows(borders: Tensor | None, batch: int, length: int, device: torch.device) -> Tensor:
    """Borders with those between rows, where documents end as well."""
    rows = torch.arange(0, batch * length + 1, length, device=device)
    return rows if borders is None else torch.unique(torch.cat([borders, rows]))


def _packed(borders: Tensor, batch: int, length: int, device: torch.device) -> Arrangement:
    slots = torch.arange(batch * length, device=device)
    starts = borders[torch.searchsorted(borders, slots, right=True) - 1]
    index = (slots - starts)[None]
    return Arrangement(index, index, index.new_zeros(1), cu_seqlens=borders, rows=batch)


def _given(position_ids: Tensor, order: Tensor | None, padding: Tensor | None, expected: Tensor) -> Tensor:
    """The user's positions, arranged; they may be shifted against the ``expected`` ones, not otherwise differ."""
    given = position_ids if order is None else position_ids.gather(1, order)
    real = torch.ones_like(given, dtype=torch.bool)
    if padding is not None:
        real = torch.arange(given.shape[1], device=given.device) >= padding[:, None]
    shift = (given - expected)[:, -1:]  # the last slot of a row is real, if any is
    if bool(((given - expected != shift) & real).any()) or bool(((given == 0) & (expected > 0) & real).any()):
        raise OptionError(
            "position_ids do not count the real tokens of each row up by one from where the cache ends. Leave them "
            "out (they follow from attention_mask and the cache), or pass documents without padding and cache."
        )
    return given.masked_fill(~real, 0)

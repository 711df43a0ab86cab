"""Rotating keys and queries of a decoder back to no position, or on to another one."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from plait.errors import OptionError
from plait.nn.rotary import rotary_table
from plait.nn.rotary import rotate as rotate_tokens


class Rope(ABC):
    """The rotary embedding of one attention module (2104.09864), with the tables of one call's tokens.

    Args:
        tables: cosine and sine of this call's tokens, ``(B, T, D')``; None outside a call.
        name: of the attention module's class, for messages.
    """

    tables: Any
    name: str

    @abstractmethod
    def table(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of ``positions`` ``(B, T)``."""

    @abstractmethod
    def _rotated(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """``x`` ``(B, heads, T, D)`` rotated by a table."""

    @abstractmethod
    def _width(self, cosine: Tensor) -> int:
        """Channels that are rotated."""

    def at(self, tables: Any) -> Self:
        """The same in a call with these tables."""
        return replace(self, tables=tables)  # type: ignore[type-var]

    def arranged(self, move: Callable[[Tensor], Tensor], batch: int) -> Self:
        """The same for tokens that ``move`` puts into another order, as in :meth:`Forward.inward`."""
        return self._with_tables(lambda table: move(table.expand(batch, -1, -1)[:, None])[:, 0])

    def part(self, first: int, last: int) -> Self:
        """The same for these tokens only."""
        return self._with_tables(lambda table: table[:, first:last])

    def rows(self, rows: Tensor) -> Self:
        """The same for these rows only."""
        return self._with_tables(lambda table: table if table.shape[0] == 1 else table.index_select(0, rows))

    def _with_tables(self, change: Callable[[Tensor], Tensor]) -> Self:
        pair = self.tables
        if not isinstance(pair, tuple) or len(pair) != 2 or any(table.dim() != 3 for table in pair):
            return self
        return self.at((change(pair[0]), change(pair[1])))

    def refusal(self, q: Tensor) -> str | None:
        """Why queries ``(B, heads, T, D)`` of this call cannot be rotated to other positions; None where they can."""
        positions = torch.arange(q.shape[2], device=q.device).expand(q.shape[0], -1)
        try:
            rotated = self.rotate(self.unrotate(q), positions)
        except OptionError as error:
            return str(error)
        except Exception as error:  # the modelling file's own function takes something else
            return str(self._refusal(f"{type(error).__name__}: {error}"))
        if torch.allclose(rotated.float(), q.float(), rtol=1e-2, atol=1e-2 * float(q.abs().max())):
            return None
        return str(self._refusal("rotating back and forth does not give what was there"))

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotate raw ``x`` ``(B, heads, T, D)`` to ``positions`` ``(B, T)``."""
        return self._rotated(x, *self.table(positions, x))

    def unrotate(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Rotate ``x`` ``(B, heads, T, D)`` back, from ``positions``, or from where this call's tokens stand."""
        cosine, sine = self._real(self.tables) if positions is None else self.table(positions, x)
        norm = cosine.square() + sine.square()
        rotated = self._rotated(x, cosine, -sine)
        width = self._width(cosine)
        scale = norm[:, None, :, :1].to(x.dtype)
        return torch.cat([rotated[..., :width] / scale, rotated[..., width:]], dim=-1)

    def shift(self, x: Tensor, offsets: Tensor) -> Tensor:
        """Rotate ``x`` ``(B, heads, T, D)``, which is rotated already, by ``offsets`` ``(B, T)`` positions more."""
        cosine, sine = self.table(offsets, x)
        norm = (cosine.square() + sine.square()).sqrt()
        return self._rotated(x, cosine / norm, sine / norm)

    def _real(self, pair: Any) -> tuple[Tensor, Tensor]:
        if not isinstance(pair, tuple) or len(pair) != 2 or pair[0].is_complex() or pair[0].dim() != 3:
            raise self._refusal("its tables are not one cosine and one sine a token")
        return pair

    def _refusal(self, reason: str) -> OptionError:
        return OptionError(f"The rotary embedding of {self.name} cannot be undone: {reason}.")


@dataclass(frozen=True)
class TransformersRope(Rope):
    """The rotary embedding of an attention module of transformers, as its modelling file has it.

    Args:
        apply: the modelling file's own ``apply_rotary_pos_emb``.
        tables: see :class:`Rope`.
        embedding: the model's rotary module, which makes tables of any positions.
        kind: the layer's type, where the rotary module has several tables.
        name: of the attention module's class, for messages.
    """

    apply: Callable[..., tuple[Tensor, Tensor]] | None
    tables: Any
    embedding: nn.Module | None
    kind: str | None
    name: str

    @classmethod
    def of(cls, module: Any, model: nn.Module) -> TransformersRope:
        """The rotary embedding of an attention module; looked up once, when a policy meets the model."""
        apply = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None)
        embedding = next((m for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")), None)
        kinds = getattr(module.config, "layer_types", None)
        kind = kinds[module.layer_idx] if kinds else None
        return cls(apply, None, embedding, kind, type(module).__name__)

    def table(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        if self.embedding is None:
            raise self._refusal("no rotary module")
        try:
            pair = self.embedding(like, positions, self.kind)
        except TypeError:  # one table for all layers
            pair = self.embedding(like, positions)
        return self._real(pair)

    def _width(self, cosine: Tensor) -> int:
        """Some tables hold a cosine per pair, some per channel."""
        half = cosine.shape[-1] // 2
        per_channel = bool((cosine[..., :half] == cosine[..., half:]).all()) or bool(
            (cosine[..., ::2] == cosine[..., 1::2]).all()
        )
        return cosine.shape[-1] * (1 if per_channel else 2)

    def _rotated(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        if self.apply is None:
            raise self._refusal("no apply_rotary_pos_emb")
        width = self._width(cosine)
        if width < x.shape[-1]:
            rotated = self.apply(x[..., :width], x[..., :width], cosine, sine)[0]
            return torch.cat([rotated, x[..., width:]], dim=-1)
        return self.apply(x, x, cosine, sine)[0]


@dataclass(frozen=True)
class PlaitRope(Rope):
    """The rotary embedding of a layer of plait: some channels side by side, in half-split pairs.

    Args:
        base: of the geometric series of frequencies.
        first: channels of a head before those that are rotated.
        width: channels that are rotated, R.
        name: of the mixer's class, for messages.
        tables: positions of a call's tokens, ``(B, T)``; the tables are made where they are needed.
    """

    base: float
    first: int
    width: int
    name: str
    tables: Any = None

    def table(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(like.dtype, torch.float32)
        cosine, sine = rotary_table(positions, self.width, self.base, dtype)
        return cosine[:, :, 0], sine[:, :, 0]

    def unrotate(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        cosine, sine = self.table(self.tables if positions is None else positions, x)
        return self._rotated(x, cosine, -sine)

    def _with_tables(self, change: Callable[[Tensor], Tensor]) -> Self:
        return self.at(change(self.tables[..., None])[..., 0])

    def _width(self, cosine: Tensor) -> int:
        return self.width

    def _rotated(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        before, own, behind = x.split([self.first, self.width, x.shape[-1] - self.first - self.width], dim=-1)
        own = rotate_tokens(own.transpose(1, 2), cosine[:, :, None], sine[:, :, None]).transpose(1, 2)
        return torch.cat([before, own, behind], dim=-1)

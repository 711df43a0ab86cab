"""Turning keys and queries of a Hugging Face decoder back to no position, or on to another one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from plait.errors import OptionError


@dataclass(frozen=True)
class Rope:
    """The rotary embedding of one attention module.

    Args:
        apply: the modelling file's own ``apply_rotary_pos_emb``.
        tables: cosine and sine of this call's tokens, ``(B, T, D')``.
        embedding: the model's rotary module, which makes tables of any positions.
        kind: the layer's type, where the rotary module has several tables.
        name: of the attention module's class, for messages.
    """

    apply: Callable[..., tuple[Tensor, Tensor]] | None
    tables: tuple[Tensor, Tensor] | None
    embedding: nn.Module | None
    kind: str | None
    name: str

    @classmethod
    def of(cls, module: Any, tables: Any, model: nn.Module) -> Rope:
        """The rotary embedding that an attention module was called with."""
        apply = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None)
        embeddings = [m for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")]
        kinds = getattr(module.config, "layer_types", None)
        kind = kinds[module.layer_idx] if kinds else None
        pair = tables if isinstance(tables, tuple) and len(tables) == 2 else None
        return cls(apply, pair, embeddings[0] if embeddings else None, kind, type(module).__name__)

    def arranged(self, move: Callable[[Tensor], Tensor], batch: int) -> Rope:
        """The same for tokens that ``move`` puts into another order, as in :meth:`Forward.inward`."""
        return self._with_tables(lambda table: move(table.expand(batch, -1, -1)[:, None])[:, 0])

    def part(self, first: int, last: int) -> Rope:
        """The same for these tokens only."""
        return self._with_tables(lambda table: table[:, first:last])

    def rows(self, rows: Tensor) -> Rope:
        """The same for these rows only."""
        return self._with_tables(lambda table: table if table.shape[0] == 1 else table.index_select(0, rows))

    def _with_tables(self, change: Callable[[Tensor], Tensor]) -> Rope:
        if self.tables is None or any(table.dim() != 3 for table in self.tables):
            return self
        return replace(self, tables=(change(self.tables[0]), change(self.tables[1])))

    def table(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of ``positions`` ``(B, T)``."""
        if self.embedding is None:
            raise self._refusal("no rotary module")
        try:
            pair = self.embedding(like, positions, self.kind)
        except TypeError:  # one table for all layers
            pair = self.embedding(like, positions)
        return self._real(pair)

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
        return str(self._refusal("turning back and forth does not give what was there"))

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Turn raw ``x`` ``(B, heads, T, D)`` to ``positions`` ``(B, T)``."""
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

    def _width(self, cosine: Tensor) -> int:
        """Channels that are rotated: some tables hold a cosine per pair, some per channel."""
        return cosine.shape[-1] * (2 if self._per_pair(cosine) else 1)

    def _per_pair(self, cosine: Tensor) -> bool:
        half = cosine.shape[-1] // 2
        return not bool((cosine[..., :half] == cosine[..., half:]).all()) and not bool(
            (cosine[..., ::2] == cosine[..., 1::2]).all()
        )

    def _rotated(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        if self.apply is None:
            raise self._refusal("no apply_rotary_pos_emb")
        width = self._width(cosine)
        if width < x.shape[-1]:
            rotated = self.apply(x[..., :width], x[..., :width], cosine, sine)[0]
            return torch.cat([rotated, x[..., width:]], dim=-1)
        return self.apply(x, x, cosine, sine)[0]

    def _real(self, pair: Any) -> tuple[Tensor, Tensor]:
        if not isinstance(pair, tuple) or len(pair) != 2 or pair[0].is_complex() or pair[0].dim() != 3:
            raise self._refusal("its tables are not one cosine and one sine a token")
        return pair

    def _refusal(self, reason: str) -> OptionError:
        return OptionError(f"The rotary embedding of {self.name} cannot be undone: {reason}.")

"""Looks at a model's attention while it runs densely: queries, keys and rows of weights, never all of them at once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from plait.errors import OptionError
from plait.ops.softmax import attention_weights, scores
from plait.ops.visibility import Causal, Window
from plait.probes.contract import Probe
from plait.runtime.applied import Applied
from plait.runtime.call import Call
from plait.runtime.dense import Dense
from plait.runtime.store import Keys


class Watched(Dense):
    """Dense attention that shows each layer's call and the keys that it scores.

    Args:
        show: told of every layer's call before it attends.
    """

    def __init__(self, show: Callable[[Call, Keys], None]) -> None:
        super().__init__()
        self._show = show

    def prefill(self, call: Call) -> Tensor:
        self._look(call)
        return super().prefill(call)

    def decode(self, call: Call) -> Tensor:
        self._look(call)
        return super().decode(call)

    def _look(self, call: Call) -> None:
        with torch.no_grad():
            self._show(call, self.keys(call))


class AttentionProbe(Probe):
    """A probe of softmax attention: a subclass says what it does with each layer's call in :meth:`show`."""

    def __init__(self, model: nn.Module, options: Any = None) -> None:
        super().__init__(model, options)
        self._applied: Applied | None = None

    @abstractmethod
    def show(self, call: Call, keys: Keys) -> None:
        """Look at one layer's call.

        Args:
            call: queries at their positions.
            keys: what they are scored against.
        """

    def __enter__(self) -> Self:
        if self._applied is not None:
            raise OptionError(f"This {type(self).__name__} is already in force: make another one for another thread.")
        applied = Applied(self.model, Watched(self.show), type(self).__name__)
        applied.__enter__()
        self._applied = applied
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._applied is not None
        self._applied.__exit__(kind, error, traceback)
        self._applied = None


def logits(call: Call, keys: Keys, q: Tensor, positions: Tensor) -> Tensor:
    """Logits of some queries, minus infinity where a query does not see a key.

    Args:
        call: for the scoring.
        keys: ``(B, G, S, D)``.
        q: ``(B, H, W, D)``.
        positions: ``(B, W)`` of the queries.

    Returns:
        ``(B, H, W, S)`` in fp32 or wider.
    """
    scoring = call.scoring
    return scores(
        q.transpose(1, 2),
        keys.keys.transpose(1, 2),
        _sight(call, keys, q, positions),
        scale=scoring.scale,
        softcap=scoring.softcap,
    )


def weights(call: Call, keys: Keys, q: Tensor, positions: Tensor, real: Tensor | None = None) -> Tensor:
    """Attention weights of some queries, within the layer's own window where it has one.

    Args:
        call, keys, q, positions: as for :func:`logits`.
        real: ``(B, W)`` bool; rows of other queries are zero.

    Returns:
        ``(B, H, W, S)``; rows sum to one, or to less where heads have a sink without a key.
    """
    mask = _sight(call, keys, q, positions)
    mask = mask if real is None else mask & real[:, None, :, None]
    scoring = call.scoring
    return attention_weights(
        q.transpose(1, 2),
        keys.keys.transpose(1, 2),
        mask,
        scale=scoring.scale,
        softcap=scoring.softcap,
        sink_logits=scoring.sink_logits,
    )


def _sight(call: Call, keys: Keys, q: Tensor, positions: Tensor) -> Tensor:
    """Which keys the queries see, ``(B, H, W, S)`` bool."""
    visibility = Causal() if call.layer.window is None else Window(call.layer.window)
    seen = visibility.sees(positions[:, None, :, None], keys.places()[:, :, None])
    kv_heads = keys.keys.shape[1]
    return seen.expand(q.shape[0], kv_heads, -1, -1).repeat_interleave(q.shape[1] // kv_heads, dim=1)

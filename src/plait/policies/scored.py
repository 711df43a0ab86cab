"""Policies that evict by a score: each says what a token is worth, the rest is shared.

A policy of this kind is one function, :meth:`ScoredPolicy.score`. Budgets, tokens that are always kept, the end of the
prompt, padding, and what happens to the memory are written once here.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from plait.mixers.state import LayerState, Segment
from plait.options import Options
from plait.policies.importance import best
from plait.runtime.call import Call, LayerInfo
from plait.runtime.policy import Policy
from plait.runtime.store import Keys, RaggedStore, first_true


@dataclass(frozen=True)
class ScoredOptions(Options):
    """Options of a policy that evicts by a score.

    Args:
        capacity: tokens kept per kv head.
        sinks: first tokens that are always kept, within the capacity.
        recent: last tokens that are always kept, within the capacity.
    """

    method: ClassVar[str] = "scored policy"
    capacity: int = 1024
    sinks: int = 0
    recent: int = 0

    def __post_init__(self) -> None:
        self.require_at_least(0, "sinks", "recent")
        least = max(1, self.sinks + self.recent)
        self.require(self.capacity >= least, "capacity", f"must hold {least} sinks and recent tokens; raise it")

    @classmethod
    def small(cls, dims: Any = None) -> Self:
        return cls(capacity=16, sinks=2, recent=4)

    def resized(self, capacity: int) -> Self:
        """The same with another capacity, which holds what is always kept."""
        return replace(self, capacity=max(1, self.sinks + self.recent, capacity))


class Prompt(Segment):
    """Whether a prompt has been read that nothing was evicted from yet."""

    plain = ("unread",)
    can_crop = True

    def __init__(self) -> None:
        self.unread = False

    def crop(self, tokens: int) -> None:
        """Nothing to do: it holds no tokens."""

    def clear(self) -> None:
        self.unread = False


class ScoredPolicy(Policy):
    """Each kv head keeps the ``capacity`` tokens of the largest score; sinks and recent tokens come first.

    A prompt given in one call is attended densely; in chunks, each chunk sees what the calls before it left.
    """

    Options: ClassVar[type[Options]] = ScoredOptions
    options: Any
    reduces: ClassVar[tuple[str, ...]] = ("decode",)
    #: ``call``: every call is followed by eviction. ``prompt``: once, when single tokens follow a prompt, so that a
    #: prompt fed in chunks is cut once; what is decoded stays.
    evicts_after: ClassVar[Literal["call", "prompt"]] = "call"

    @abstractmethod
    def score(self, call: Call, keys: Keys) -> Tensor:
        """What each token held is worth, ``(B, G, S)``; what stands in empty slots is ignored.

        Args:
            call: the call after which tokens leave; its own are held already. After a prompt it is the first single
                token, which is not held yet.
            keys: what is held.
        """

    @classmethod
    def with_budget(cls, budget: int, length: int) -> dict[str, Any]:
        return {"capacity": min(budget, length)}

    @property
    def always(self) -> tuple[int, int]:
        """First and last tokens that stay whatever their score."""
        return self.options.sinks, self.options.recent

    @property
    def capacity(self) -> int:
        """Tokens kept per kv head, on average over the heads of a layer."""
        return self.options.capacity

    def new_state(self, layer: LayerInfo) -> LayerState:
        prompt = {"prompt": Prompt()} if self.evicts_after == "prompt" else {}
        return LayerState({"kv": RaggedStore(), **prompt})

    def write(self, call: Call) -> None:
        if self.evicts_after == "prompt":
            prompt: Any = call.state["prompt"]
            if call.phase == "decode" and prompt.unread:
                self.evict(call)
            prompt.unread = call.phase != "decode"
        super().write(call)

    def trim(self, call: Call) -> None:
        if self.evicts_after == "call":
            self.evict(call)

    def evict(self, call: Call) -> None:
        """Let the tokens of the smallest scores go."""
        keys = self.keys(call)
        if keys.size > self.capacity:
            self.store(call).keep(*self.select(self.ranked(self.score(call, keys), keys), keys))

    def ranked(self, scores: Tensor, keys: Keys) -> Tensor:
        """``scores`` with infinity at what is always kept and ``-inf`` at empty slots."""
        slots = torch.arange(keys.size, device=scores.device)
        held = keys.size if keys.lengths is None else keys.lengths[..., None]
        sinks, recent = self.always
        scores = scores.masked_fill((slots < sinks) | (slots >= held - recent), float("inf"))
        return scores if keys.lengths is None else scores.masked_fill(slots >= held, float("-inf"))

    def select(self, scores: Tensor, keys: Keys) -> tuple[Tensor, Tensor | None]:
        """Slots to keep, ``(B, G, K)``, ascending, and their validity."""
        return best(scores, self.capacity)


def share_among_heads(scores: Tensor, capacity: int, least: int) -> tuple[Tensor, Tensor | None]:
    """Each head keeps its own best; what is left of the layer's budget goes to the best of all heads (2407.11550).

    Args:
        scores: ``(B, G, S)``, infinite at what is always kept, ``-inf`` at empty slots.
        capacity: tokens kept per head, on average.
        least: tokens that every head keeps.

    Returns:
        As :func:`~plait.policies.importance.best`.
    """
    batch, heads, size = scores.shape
    real = (scores > float("-inf")).sum(-1)
    budget, own = (real.clamp(max=n)[:, :1] for n in (capacity, least))
    rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    first = rank < own[..., None]
    rest = scores.masked_fill(first, float("-inf")).flatten(1)
    rank = rest.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    wanted = (rank < heads * (budget - own)) & (rest > float("-inf"))
    return first_true(first | wanted.view(batch, heads, size), size)

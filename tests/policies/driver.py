"""One layer under a policy, without a model: random queries, keys and values, fed in calls of any length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from plait.policies import Applied, LayerInfo, ModelInfo, Policy, build
from plait.runtime.call import Forward, Scoring

SIZE = 8


class Driver:
    """A layer with ``query_heads`` query heads and ``kv_heads`` kv heads of 8 channels, in fp64.

    Args:
        policy: name or policy.
        length: tokens of the text.
        query_heads, kv_heads: H and G.
        rows: B.
        padding: padding in front of each row.
        seed: of the text.
        options: of the policy.
    """

    def __init__(
        self,
        policy: str | Policy,
        length: int,
        *,
        query_heads: int = 4,
        kv_heads: int = 2,
        rows: int = 1,
        padding: list[int] | None = None,
        seed: int = 0,
        reference: bool = False,
        **options: Any,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.policy = build(policy, **options)
        self.layer = LayerInfo(0, query_heads, kv_heads, SIZE, SIZE)
        self.policy.bind(ModelInfo("driver", (self.layer,), "none"))
        self.applied = Applied(nn.Module(), self.policy, "driver", reference=reference)
        self.q, self.k, self.v = (
            torch.randn(rows, n, length, SIZE, generator=generator, dtype=torch.float64)
            for n in (query_heads, kv_heads, kv_heads)
        )
        self.padding = torch.tensor(padding or [0] * rows)
        self.state: Any = self.applied.new_state(self.layer)
        self.seen = 0

    def feed(self, tokens: int = 1) -> Tensor:
        """The next tokens' outputs, ``(B, H, T, D)``."""
        new = slice(self.seen, self.seen + tokens)
        slots = torch.arange(self.seen, self.seen + tokens)
        real = slots >= self.padding[:, None]
        past = (self.seen - self.padding).clamp(min=0)
        forward = Forward.begin(tokens, self.seen, past, bool((past == past[0]).all()), real)
        out = self.applied.attend(
            self.layer,
            self.q[:, :, new],
            self.k[:, :, new],
            self.v[:, :, new],
            forward,
            Scoring(SIZE**-0.5),
            self.state,
        )
        self.seen += tokens
        return out

    def work(self, phase: str) -> Any:
        """What was counted."""
        return self.applied.report().layers[0][phase]

    def held(self, name: str = "kv", row: int = 0) -> list[list[int]]:
        """Positions in a store, by kv head."""
        store = self.state[name]
        if not store.size:
            return [[] for _ in range(self.layer.kv_heads)]
        keys = store.view()
        places = keys.places().expand(*keys.keys.shape[:3])[row]
        return [[p for p in head.tolist() if p < 2**62] for head in places]

    def weights(self) -> Tensor:
        """Dense causal attention ``(B, H, T, T)`` of the text (no padding)."""
        k = self.k.repeat_interleave(self.layer.group, dim=1)
        scores = self.q @ k.mT * SIZE**-0.5
        return scores.masked_fill(~torch.ones_like(scores[0, 0]).bool().tril(), float("-inf")).softmax(-1)

    def attention(self, mask: Tensor) -> Tensor:
        """Attention of the text under a mask ``(T, T)`` or ``(B, H, T, T)``."""
        k, v = (x.repeat_interleave(self.layer.group, dim=1) for x in (self.k, self.v))
        scores = (self.q @ k.mT * SIZE**-0.5).masked_fill(~mask, float("-inf"))
        return scores.softmax(-1) @ v

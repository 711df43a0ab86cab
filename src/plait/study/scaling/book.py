"""Softmax attention as an additive recurrence that starts again at every query, "going through a book".

Source: "Scaling Laws for Linear Complexity Language Models" (2406.16690). It shows what softmax attention has and a
linear recurrence has not: it may read everything again for each question. It is an identity, not a faster way.
"""

from __future__ import annotations

import torch
from torch import Tensor


def book_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, int]:
    """Causal softmax attention by the recurrence, one step for each query and key.

    Args:
        q, k: ``(T, K)``; the scale is K^-0.5.
        v: ``(T, V)``.

    Returns:
        Outputs ``(T, V)``, and the number of steps, T (T + 1) / 2.
    """
    outputs, steps = [], 0
    for t in range(len(q)):
        total, output = q.new_zeros(()), v.new_zeros(v.shape[-1])
        for j in range(t + 1):
            before = total
            total = before + torch.exp(q[t] @ k[j] * q.shape[-1] ** -0.5)
            kept = before / total
            output = kept * output + (1 - kept) * v[j]
            steps += 1
        outputs.append(output)
    return torch.stack(outputs), steps

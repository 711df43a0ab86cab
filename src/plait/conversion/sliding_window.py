"""Sliding window: attention layers become attention to the last tokens, their weights untouched (2512.10411)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from plait.conversion.recipe import Recipe
from plait.errors import OptionError
from plait.mixers.attention import Attention, AttentionOptions
from plait.mixers.base import Mixer


@dataclass(frozen=True)
class SlidingWindow(Recipe):
    """Attention becomes attention with a window, every second layer by default; all weights are the teacher's.

    Of the means of SWAA (Sliding Window Attention Adaptation) these are two: layers with and without a window take
    turns, and the layers with a window are trained a little. Its others, first tokens that stay in sight and full
    attention while decoding, are left out.

    Reconstruction: ``distil`` from the teacher's logits, where the paper fine-tunes low-rank adapters
    (``distil_steps=0``, ``tune_steps`` and ``lora_rank`` come nearer), the default window, and all budgets.

    Args:
        window: tokens that a query sees, its own included.
        align_steps, distil_steps, tune_steps: optimiser steps of each stage; 0 leaves it out.
        align_rates, distil_rates, tune_rates: its highest and its last learning rate.
        lora_rank: rank of low-rank adapters of q, k and v that ``tune`` trains; 0 trains the layers themselves.
    """

    default_ratio: ClassVar[str] = "1:1"

    window: int = 128
    align_steps: int = 0
    distil_rates: tuple[float, float] = (3e-4, 3e-5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise OptionError(f"window={self.window} must be at least 1.")

    def twin(self, attention: AttentionOptions, sizes: tuple[int, int, int]) -> tuple[str, dict[str, Any]]:
        if attention.window is not None:
            raise OptionError(f"The model's attention has a window already, of {attention.window} tokens.")
        return "window", {"mixer": "attention", **dataclasses.asdict(attention), "window": self.window}

    def twin_weights(self, attention: Attention, twin: Mixer) -> dict[str, Tensor]:
        return dict(attention.state_dict())

    def trains(self, stage: str, name: str, converted: bool) -> bool:
        return "lora_" in name if stage == "tune" and self.lora_rank else converted

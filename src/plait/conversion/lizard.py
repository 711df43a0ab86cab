"""Lizard: every attention becomes gated linear attention with a window, its own projections untouched (2507.09025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from plait.conversion.recipe import Recipe
from plait.mixers.attention import Attention, AttentionOptions
from plait.mixers.base import Mixer

#: Parameters that Lizard adds to a layer.
OWN = ("q_map", "k_map", "gate", "sink_logits", "alpha")

#: Budgets of the paper: twice 20 million tokens in rows of 2,048, for a model of 8 billion parameters.
PAPER = {
    "align_steps": 1220,
    "align_rates": [1e-3, 1e-4],
    "align_relative": False,
    "tune_steps": 1220,
    "tune_rates": [5e-4, 5e-5],
    "batch_size": 8,
    "warmup_steps": 122,
    "betas": [0.9, 0.99],
}


@dataclass(frozen=True)
class Lizard(Recipe):
    """Attention becomes the mixer ``lizard``, in every layer unless some are to stay.

    The projections are the teacher's. ``align`` trains only the feature maps, the gate, the sinks and alpha, so that
    the heads' outputs before the output projection are the teacher's; ``tune`` then trains low-rank adapters of the
    query, key and value projections on the next token. Logits are distilled only if ``distil_steps`` says so.

    Reconstruction: outputs are compared before the output projection, layers are fed with the teacher's inputs,
    Lizard's own parameters go on learning while the adapters do, and which layers stay where some do.

    Args:
        feature_dim: features of a query or key, both halves together.
        window: tokens that the softmax branch sees.
        sinks: learnt terms in its denominator.
        gate_bias: constant in the gate's sigmoid; 0 as published, 6 starts with a long memory.
        lora_rank: rank of the adapters; 0 tunes all weights instead.
        align_steps, distil_steps, tune_steps: optimiser steps of each stage; 0 leaves it out.
        align_rates, distil_rates, tune_rates: its highest and its last learning rate.
        align_relative: divide each layer's error by the mean square of what it should be; the paper does not.
        batch_size: rows of a step.
        warmup_steps: steps over which the rate rises linearly.
        betas: of AdamW.
        clip: largest global gradient norm; 0 turns clipping off.
        precision: ``fp32``, ``bf16`` (autocast, weights stay fp32) or ``auto`` (bf16 where the device has it).
        save_every: steps between checkpoints.
        log_every: steps between logged losses.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": PAPER}
    default_ratio: ClassVar[str] = "pure"
    align_after_projection: ClassVar[bool] = False

    feature_dim: int = 128
    window: int = 128
    sinks: int = 4
    gate_bias: float = 0.0
    lora_rank: int = 8
    distil_steps: int = 0
    tune_steps: int = 300
    tune_rates: tuple[float, float] = (5e-4, 5e-5)
    betas: tuple[float, float] = (0.9, 0.99)

    def twin(self, attention: AttentionOptions, sizes: tuple[int, int, int]) -> tuple[str, dict[str, Any]]:
        self.require_carried(attention)
        heads, kv_heads, head_dim = sizes
        return "lizard", {
            "num_heads": heads,
            "num_kv_heads": kv_heads,
            "head_dim": head_dim,
            "feature_dim": self.feature_dim,
            "window": self.window,
            "sinks": self.sinks,
            "gate_bias": self.gate_bias,
            "qk_norm": attention.qk_norm,
            "qk_norm_eps": attention.qk_norm_eps,
        }

    def twin_weights(self, attention: Attention, twin: Mixer) -> dict[str, Tensor]:
        return dict(attention.state_dict())

    def trains(self, stage: str, name: str, converted: bool) -> bool:
        own = converted and name.endswith(OWN)
        return own if stage == "align" else own or "lora_" in name or not self.lora_rank

"""HALO: linear twins of attention layers, aligned, chosen by what their loss costs, then distilled (2601.22156)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from plait.conversion.recipe import Recipe, repeated
from plait.mixers.attention import Attention, AttentionOptions
from plait.mixers.base import Mixer

#: Budgets of the paper at 512 tokens a row, for models of 2 billion parameters and more.
PAPER = {
    "align_steps": 20_000,
    "align_rates": [1e-3, 1e-5],
    "align_relative": False,
    "distil_steps": 20_000,
    "distil_rates": [1e-4, 1e-5],
    "tune_steps": 500,
    "tune_rates": [1e-5, 1e-5],
    "batch_size": 32,
    "warmup_steps": 50,
    "save_every": 500,
}


@dataclass(frozen=True)
class Halo(Recipe):
    """Attention becomes Lightning attention or Gated DeltaNet; the layers that recall most stay softmax attention.

    HALO aligns a twin of every layer first, each fed with the teacher's own input, so that one sweep can measure what
    each layer is worth (``--select importance``). Lightning twins copy q, k, v and o, every key-value head repeated for
    its query heads; so do those of Gated DeltaNet, whose convolutions start as identities. With HyPE the layers that
    stay attention lose their rotary embedding and Lightning layers keep it.

    HALO aligns the two at the mixers' outputs, trains everything while it distils and gives the kept layers an output
    gate. Reconstruction: the gate that starts at 1, the budgets outside ``preset: paper``, and that preset's rows: its
    16,384 tokens a step are 32 rows of 512 in every stage, where the paper has 49 thousand to distil and 2.1 million to
    tune. Gated DeltaNet has no rotary embedding; its convolutions and decays know positions.

    Args:
        mixer: what replaces attention.
        hype: take the rotary embedding out of the layers that stay attention.
        logit_scaling: constant a of those layers: outside training, scores of the token at position t are multiplied by
            ``log(t + a) / log(a)``. One number a model; 500 for the published one of 2 billion parameters. None: not.
        gate: output gate of those layers: ``none``; ``fresh`` starts near a half, as published; ``identity`` starts at
            exactly 1 after the output projection was doubled, so that the layer is unchanged at first.
        trained: what ``distil`` and ``tune`` train: ``all``, or only the ``converted`` layers (MiniCPM-SALA).
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
    default_selection: ClassVar[str] = "importance"

    mixer: Literal["lightning", "gated_deltanet"] = "lightning"
    hype: bool = True
    logit_scaling: float | None = 362.0
    gate: Literal["none", "fresh", "identity"] = "fresh"
    trained: Literal["all", "converted"] = "all"

    def twin(self, attention: AttentionOptions, sizes: tuple[int, int, int]) -> tuple[str, dict[str, Any]]:
        self.require_carried(attention)
        heads, _, head_dim = sizes
        options: dict[str, Any] = {"num_heads": heads, "head_dim": head_dim}
        if self.mixer == "lightning":
            options |= {"rope_base": attention.rope_base, "qk_norm": attention.qk_norm}
            options |= {"qk_norm_eps": attention.qk_norm_eps}
        return self.mixer, options

    def twin_weights(self, attention: Attention, twin: Mixer) -> dict[str, Tensor]:
        H, N, D = attention.sizes
        source = attention.state_dict()
        weights = {name: source[name] for name in ("q_proj.weight", "o_proj.weight")}
        weights |= {name: repeated(source[name], H // N, D) for name in ("k_proj.weight", "v_proj.weight")}
        target = twin.state_dict()
        weights |= {
            name: source[name] for name in ("q_norm.weight", "k_norm.weight") if name in source and name in target
        }
        for name, value in target.items():
            if name.endswith("_conv1d.weight"):
                weights[name] = torch.zeros_like(value)
                weights[name][..., -1] = 1  # the last tap meets the current token
        return weights

    def kept(self, attention: AttentionOptions) -> dict[str, Any]:
        changes: dict[str, Any] = {"rope_base": None, "logit_scaling": self.logit_scaling} if self.hype else {}
        return changes if self.gate == "none" else changes | {"output_gate": True}

    def kept_weights(self, attention: Attention, kept: Mixer) -> dict[str, Tensor]:
        if self.gate != "identity":
            return {}
        weights = kept.state_dict()
        return {
            "g_proj.weight": torch.zeros_like(weights["g_proj.weight"]),
            "o_proj.weight": 2 * attention.state_dict()["o_proj.weight"],
        }

    def trains(self, stage: str, name: str, converted: bool) -> bool:
        if stage == "tune" and self.lora_rank:
            return "lora_" in name
        return converted or (stage != "align" and self.trained == "all")

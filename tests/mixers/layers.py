"""Layers with random weights in fp64 for the mixers' tests, and the formulas that several of them share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from plait import catalog
from plait.mixers import Context, Dims, Mixer

HIDDEN, LAYERS = 24, 3

#: Settings beside the defaults, by case name: (mixer, options).
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "attention-window": ("attention", {"window": 4}),
    "attention-grouped": ("attention", {"num_heads": 4, "num_kv_heads": 2, "qk_norm": True, "output_gate": True}),
    "attention-partial-rope": ("attention", {"head_dim": 8, "num_heads": 2, "partial_rotary_factor": 0.25}),
    "attention-joint-norm": (
        "attention",
        {"num_heads": 4, "num_kv_heads": 2, "qk_norm": True, "qk_norm_per_head": False},
    ),
    "attention-no-rope": ("attention", {"rope_base": None, "qkv_bias": True}),
    "gated_deltanet-grouped": ("gated_deltanet", {"num_heads": 2, "num_v_heads": 4, "head_dim": 4, "expand_v": 2.0}),
    "gated_deltanet-plain": ("gated_deltanet", {"use_short_conv": False, "use_gate": False}),
    "mla-queries": ("mla", {"num_heads": 3, "q_lora_rank": 10, "v_head_dim": 4, "rope_base": None}),
    "kda-grouped": ("kda", {"num_heads": 2, "num_v_heads": 4, "head_dim": 4, "expand_v": 2.0}),
    "kda-bounded": ("kda", {"lower_bound": -5.0, "use_short_conv": False, "output_gate_bias": False}),
    "deltanet-gate": ("deltanet", {"use_gate": True, "qk_activation": "elu", "qk_norm": "abs_sum", "conv_size": 3}),
    "deltanet-plain": ("deltanet", {"use_beta": False, "use_short_conv": False}),
    "gla-grouped": ("gla", {"num_kv_heads": 2, "use_short_conv": True, "clamp_min": -0.05}),
    "gla-ungated": ("gla", {"use_output_gate": False, "num_heads": 2}),
    "lightning-plain": ("lightning", {"num_heads": 3, "qk_norm": False, "use_output_gate": False, "rope_base": None}),
    "lightning-convolution": ("lightning", {"num_heads": 4, "use_short_conv": True}),
    "lizard-window": ("lizard", {"num_heads": 4, "num_kv_heads": 2, "window": 4, "feature_dim": 10, "qk_norm": True}),
    "lizard-no-window": ("lizard", {"num_heads": 2, "window": 0, "share_features": True, "feature_dim": 8}),
    "retnet-grouped": ("retnet", {"num_heads": 4, "num_kv_heads": 2, "use_short_conv": True}),
    "retnet-no-rope": ("retnet", {"num_heads": 3, "rope_base": None, "use_output_gate": False}),
    "hgrn-convolution": ("hgrn", {"use_short_conv": True, "expand_ratio": 2}),
    "hgrn2-convolution": ("hgrn2", {"use_short_conv": True, "expand_ratio": 6, "use_lower_bound": False}),
}
CASES = {name: (name, {}) for name in catalog.names("mixer")} | {"retnet": ("retnet", {"num_heads": 4})} | VARIANTS


def make(name: str, *, layer: int = 1, hidden: int = HIDDEN, **options: Any) -> Mixer:
    """A layer of width 24 in a model of 3, in fp64; all weights are random, norms near 1."""
    cls = catalog.get(name).load()
    mixer = cls(Dims(hidden, LAYERS), cls.Options.parse(name, options), layer).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in mixer.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.3 * noise + ("norm" in key))
    return mixer


def case(name: str, layer: int = 1) -> Mixer:
    """The layer of one entry of :data:`CASES`."""
    mixer, options = CASES[name]
    return make(mixer, layer=layer, **options)


def shared(mixer: Mixer) -> dict[str, Tensor]:
    """Random values of the parameters that the model would hold for this layer."""
    generator = torch.Generator().manual_seed(2)
    dtype = next(mixer.parameters()).dtype
    return {
        key: torch.randn(value.shape, generator=generator, dtype=torch.float64).to(dtype)
        for key, value in type(mixer).shared_parameters(mixer.dims, mixer.options).items()
    }


def inputs(batch: int = 2, length: int = 19, hidden: int = HIDDEN, seed: int = 3) -> Tensor:
    """Random ``(B, T, d)`` in fp64."""
    return torch.randn(batch, length, hidden, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(mixer: Mixer, x: Tensor, **context: Any) -> Tensor:
    """The layer on a whole batch, with its shared parameters."""
    return mixer(x, Context.plain(x, parameters=shared(mixer), **context))


def plain_convolution(x: Tensor, weight: Tensor) -> Tensor:
    """``y_t = sum_j w[:, 0, kernel-1-j] x_{t-j}`` written as a loop over the taps."""
    y = torch.zeros_like(x)
    taps = weight.shape[-1]
    for j in range(min(taps, x.shape[1])):
        y[:, j:] += weight[:, 0, taps - 1 - j] * x[:, : x.shape[1] - j]
    return y


def heads(x: Tensor, count: int) -> Tensor:
    """``(B, T, H * D)`` to ``(B, T, H, D)``."""
    return x.view(*x.shape[:2], count, -1)


def unit(x: Tensor) -> Tensor:
    """Scaled to length 1, with the delta family's epsilon."""
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def rms(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """RMS norm over the last axis."""
    return F.rms_norm(x, weight.shape, weight, eps)


def near(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Equal to an absolute ``tolerance`` and finite."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)

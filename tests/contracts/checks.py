"""The contract of a causal mixer as checks over a tiny model; each raises AssertionError when it is broken.

``test_mixers.py`` runs them over the catalogue, ``test_planted_faults.py`` proves that they notice faults.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait import catalog
from plait.mixers import Dims
from plait.models import PlaitCache, PlaitConfig, PlaitForCausalLM, plan_cost
from plait.training import after_step

VOCABULARY = 61
GOLDEN = Path(__file__).parent / "golden"

#: Settings that the defaults do not reach, by case name: (mixer, options).
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "attention-window": ("attention", {"window": 5}),
    "attention-grouped": ("attention", {"head_dim": 8, "num_kv_heads": 2, "qk_norm": True, "output_gate": True}),
    "attention-convolution": ("attention", {"use_short_conv": True, "num_heads": 4, "num_kv_heads": 2}),
    "attention-no-rope": ("attention", {"rope_base": None}),
    "attention-partial-rope": (
        "attention",
        {"head_dim": 8, "num_kv_heads": 2, "partial_rotary_factor": 0.5, "qk_norm": True, "qk_norm_per_head": False},
    ),
    "gated_deltanet-grouped": ("gated_deltanet", {"head_dim": 8, "num_heads": 2, "num_v_heads": 4}),
    "gated_deltanet-negative": ("gated_deltanet", {"allow_neg_eigval": True, "use_gate": False}),
    "mla-queries": ("mla", {"num_heads": 4, "q_lora_rank": 12, "kv_lora_rank": 10, "v_head_dim": 6, "rope_base": None}),
    "kda-grouped": ("kda", {"head_dim": 8, "num_heads": 2, "num_v_heads": 4, "allow_neg_eigval": True}),
    "kda-bounded": ("kda", {"lower_bound": -5.0, "output_gate_bias": False, "use_short_conv": False}),
    "deltanet-gate": ("deltanet", {"use_gate": True, "allow_neg_eigval": True, "num_heads": 2}),
    "gla-convolution": ("gla", {"use_short_conv": True, "num_heads": 2}),
    "lightning-variant": (
        "lightning",
        {"num_heads": 4, "qk_norm": False, "use_output_gate": False, "use_short_conv": True},
    ),
    "lizard-window": ("lizard", {"num_heads": 4, "num_kv_heads": 2, "window": 5, "feature_dim": 8, "qk_norm": True}),
    "lizard-linear": ("lizard", {"window": 0, "feature_dim": 16, "share_features": True, "gate_bias": 3.0}),
    "retnet-two-heads": ("retnet", {"num_heads": 2}),
    "hgrn2-two-heads": ("hgrn2", {"expand_ratio": 16}),
}


def cases() -> dict[str, tuple[str, dict[str, Any]]]:
    """Every mixer of the catalogue at its defaults, at its small settings where these differ, and the variants."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for method in catalog.methods("mixer"):
        kind = method.load().Options
        found[method.name] = (method.name, {})
        small = kind.small(Dims(32, 2))
        if small != kind():
            found[f"{method.name}-small"] = (method.name, dataclasses.asdict(small))
    return found | VARIANTS


def small_case(mixer: str) -> str:
    """The case at which the mixer's mechanism acts on few tokens."""
    return f"{mixer}-small" if f"{mixer}-small" in cases() else mixer


def small_of(case: str) -> str:
    """The case itself, at the mixer's small settings where it is the mixer at its defaults."""
    return small_case(case) if case in catalog.names("mixer") else case


def tiny_model(case: str, *, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> PlaitForCausalLM:
    """Two layers of one mixer, width 32, with weights that depend on nothing but numpy's stable generator."""
    mixer, options = cases()[case]
    config = PlaitConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        intermediate_size=48,
        layer_types=[mixer, mixer],
        mixers={mixer: options},
    )
    model = PlaitForCausalLM(config).to(dtype).eval()
    rng = np.random.RandomState(7)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.from_numpy(rng.standard_normal(tuple(parameter.shape))).to(dtype)
            base = 1.0 if "norm" in name else 0.0
            parameter.copy_(base + 0.25 * scale * noise)
    return model


def tokens(batch: int, length: int, seed: int = 3) -> Tensor:
    """Random token ids ``(batch, length)``."""
    return torch.from_numpy(np.random.RandomState(seed).randint(1, VOCABULARY, size=(batch, length)))


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """Equal within ``tolerance`` of the largest entry, NaN never allowed."""
    assert torch.isfinite(actual).all(), "an output is not finite"
    bound = tolerance * max(1.0, float(expected.abs().max()))
    error = float((actual - expected).abs().max())
    assert error <= bound, f"largest difference {error:.2e} > {bound:.2e}"


@torch.no_grad()
def check_causality(case: str) -> None:
    """Changing token t changes no output before t, bit for bit, and does change the one at t."""
    model = tiny_model(case)
    ids = tokens(2, 70)
    before = model(ids).logits
    for t in (1, 16, 63, 69):
        changed = ids.clone()
        changed[:, t] = (changed[:, t] + 1) % VOCABULARY
        after = model(changed).logits
        assert torch.equal(before[:, :t], after[:, :t]), f"token {t} reaches into the past"
        assert not torch.equal(before[:, t], after[:, t])


@torch.no_grad()
def check_past_is_read(case: str) -> None:
    """The output at t depends on the token before t."""
    model = tiny_model(case)
    ids = tokens(1, 12)
    changed = ids.clone()
    changed[:, 10] = (changed[:, 10] + 1) % VOCABULARY
    assert not torch.allclose(model(ids).logits[:, 11], model(changed).logits[:, 11], atol=1e-9)


@torch.no_grad()
def check_splits(case: str) -> None:
    """One pass == any split == token by token."""
    model = tiny_model(case)
    ids = tokens(2, 40)
    whole = model(ids).logits
    for pieces in ([1, 3, 17, 19], [37, 3], [2, 1, 1, 36], [1] * 40):
        cache = PlaitCache(model.config)
        parts = [model(part, past_key_values=cache, use_cache=True).logits for part in ids.split(pieces, dim=1)]
        close(torch.cat(parts, dim=1), whole)


@torch.no_grad()
def check_padding(case: str) -> None:
    """Left, right and interior padding change nothing for real tokens."""
    model = tiny_model(case)
    ids = tokens(3, 14)
    lengths = [14, 9, 5]
    alone = [model(ids[row : row + 1, :length]).logits[0] for row, length in enumerate(lengths)]
    generator = torch.Generator().manual_seed(0)
    for side in ("left", "right", "interior"):
        padded = tokens(3, 14, seed=11)  # padding slots hold arbitrary tokens
        mask = torch.zeros(3, 14, dtype=torch.long)
        for row, length in enumerate(lengths):
            slots = {
                "left": torch.arange(14 - length, 14),
                "right": torch.arange(length),
                "interior": torch.randperm(14, generator=generator)[:length].sort().values,
            }[side]
            mask[row, slots] = 1
            padded[row, slots] = ids[row, :length]
        logits = model(padded, attention_mask=mask).logits
        for row in range(3):
            close(logits[row][mask[row].bool()], alone[row])


@torch.no_grad()
def check_padded_continuation(case: str) -> None:
    """A padded batch continued by a second, differently padded call equals the unpadded rows."""
    model = tiny_model(case)
    ids = tokens(2, 16)
    first, second = [9, 6], [4, 7]
    alone = [model(ids[row : row + 1, : first[row] + second[row]]).logits[0] for row in range(2)]
    cache = PlaitCache(model.config)
    masks = torch.zeros(2, 0, dtype=torch.long)
    starts = [0, 0]
    for lengths, width in ((first, 9), (second, 7)):
        part = torch.zeros(2, width, dtype=torch.long)
        mask = torch.zeros(2, width, dtype=torch.long)
        for row, length in enumerate(lengths):
            part[row, width - length :] = ids[row, starts[row] : starts[row] + length]
            mask[row, width - length :] = 1
        masks = torch.cat([masks, mask], dim=1)
        logits = model(part, attention_mask=masks, past_key_values=cache, use_cache=True).logits
        for row, length in enumerate(lengths):
            close(logits[row, width - length :], alone[row][starts[row] : starts[row] + length])
            starts[row] += length


@torch.no_grad()
def check_packing(case: str) -> None:
    """Documents packed into one row equal separate runs."""
    model = tiny_model(case)
    lengths = [7, 1, 20, 3]
    ids = tokens(1, sum(lengths))
    borders = torch.tensor([0, *np.cumsum(lengths)])
    packed = model(ids, cu_seqlens=borders).logits
    separate = torch.cat([model(part).logits for part in ids.split(lengths, dim=1)], dim=1)
    close(packed, separate)


@torch.no_grad()
def check_rows(case: str) -> None:
    """Rows of a batch are independent."""
    model = tiny_model(case)
    ids = tokens(3, 20)
    together = model(ids).logits
    for row in range(3):
        close(together[row], model(ids[row : row + 1]).logits[0])


@torch.no_grad()
def check_state(case: str) -> None:
    """The state is as large as ``cost`` says, and constant in T where the catalogue says so."""
    mixer, options = cases()[case]
    model = tiny_model(case)
    sizes = []
    for length in (20, 40):
        cache = PlaitCache(model.config)
        model(tokens(1, length), past_key_values=cache, use_cache=True)
        sizes.append(cache.bytes())
        segments = [one for layer in cache.layers for one in layer.state.segments.values()]
        held = sum(
            x.untyped_storage().nbytes() for one in segments for name, x in one.tensors() if name not in one.bookkeeping
        )
        assert held <= 1.5 * cache.bytes()  # keys and values grow ahead; a view of a whole prompt would hold more
    in_double = plan_cost(model.config, 40, cache_dtype=torch.float64).state_bytes
    recurrent_bytes = sum(
        segment.bytes()
        for layer in range(2)
        for segment in cache.layers[layer].state.segments.values()
        if segment.recurrent
    )
    # cost counts recurrent states in fp32; this model runs in fp64
    assert sizes[1] == in_double + recurrent_bytes // 2
    bounded = catalog.get(mixer).state == "constant" or options.get("window") is not None
    assert (sizes[0] == sizes[1]) is bounded


@torch.no_grad()
def check_beams(case: str) -> None:
    """Reordered, forked and restored caches continue as the rows they came from."""
    model = tiny_model(case)
    ids = tokens(2, 10)
    cache = PlaitCache(model.config)
    model(ids[:, :6], past_key_values=cache, use_cache=True)
    saved = cache.snapshot()
    straight = model(ids[:, 6:], past_key_values=cache, use_cache=True).logits
    close(straight, model(ids).logits[:, 6:])
    cache.restore(saved)
    close(model(ids[:, 6:], past_key_values=cache, use_cache=True).logits, straight)
    cache.restore(saved)
    cache.reorder_cache(torch.tensor([1, 0]))
    close(model(ids[:, 6:].flip(0), past_key_values=cache, use_cache=True).logits, straight.flip(0))
    cache.restore(saved)
    forked = cache.fork(3)
    repeated = ids[:, 6:].repeat_interleave(3, dim=0)
    close(model(repeated, past_key_values=forked, use_cache=True).logits, straight.repeat_interleave(3, dim=0))


@torch.no_grad()
def check_precision(case: str) -> None:
    """fp32 and bf16 stay near fp64 with the same (rounded) weights."""
    ids = tokens(2, 33)
    close(tiny_model(case, dtype=torch.float32)(ids).logits.double(), tiny_model(case)(ids).logits, 1e-4)
    rounded = tiny_model(case, dtype=torch.bfloat16)
    output = rounded(ids).logits
    assert output.dtype == torch.bfloat16
    exact = rounded.double()(ids).logits
    error = float((output.double() - exact).norm() / exact.norm())
    assert error < 0.08, f"relative error {error:.3f} in bf16"


def check_gradients(case: str) -> None:
    """Gradients agree with finite differences."""
    model = tiny_model(case)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    embedded = model.get_input_embeddings()(tokens(1, 6)).detach().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: model(inputs_embeds=x).logits, (embedded,), fast_mode=True)


def check_parameter_gradients(case: str) -> None:
    """The gradient of every parameter agrees with finite differences, over several blocks of every backend."""
    model, ids, step = tiny_model(case, scale=0.5), tokens(1, 150), 1e-5
    weights = torch.from_numpy(np.random.RandomState(4).standard_normal((150, VOCABULARY)))

    def value() -> Tensor:
        return (model(ids, use_cache=False).logits[0] * weights).mean()

    value().backward()
    rng = np.random.RandomState(5)
    for name, parameter in model.named_parameters():
        direction = torch.from_numpy(rng.standard_normal(tuple(parameter.shape)))
        direction /= direction.norm()
        with torch.no_grad():
            parameter += step * direction
            above = value()
            parameter -= 2 * step * direction
            below = value()
            parameter += step * direction
        found = 0.0 if parameter.grad is None else float((parameter.grad * direction).sum())
        expected = float(above - below) / (2 * step)
        assert abs(found - expected) <= 1e-6 * abs(expected) + 1e-9, f"{name}: {found:.8e} is not {expected:.8e}"


@torch.no_grad()
def check_uneven_lengths(case: str) -> None:
    """Padding, packing and splits at lengths that are no multiple of a block, longer than every block."""
    model = tiny_model(small_of(case))
    lengths = [101, 67, 1]
    ids = tokens(3, 101)
    alone = [model(ids[row : row + 1, :length]).logits[0] for row, length in enumerate(lengths)]
    shifted, mask = torch.ones_like(ids), torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        shifted[row, 101 - length :] = ids[row, :length]
        mask[row, 101 - length :] = 1
    padded = model(shifted, attention_mask=mask).logits
    packed = torch.cat([ids[row, :length] for row, length in enumerate(lengths)])[None]
    documents = model(packed, cu_seqlens=torch.tensor([0, *np.cumsum(lengths)])).logits[0].split(lengths)
    for row, length in enumerate(lengths):
        close(padded[row, 101 - length :], alone[row])
        close(documents[row], alone[row])
    for pieces in ([67, 1, 31, 2], [1, 13, 87]):
        cache = PlaitCache(model.config)
        parts = [model(part, past_key_values=cache).logits for part in ids[:1].split(pieces, dim=1)]
        close(torch.cat(parts, dim=1)[0], alone[0])


def check_running_state(case: str) -> None:
    """What is learnt without a gradient moves in training alone, by the same bits however blocks are computed, and goes
    on after it was saved.
    """

    def train(model: PlaitForCausalLM, steps: range) -> PlaitForCausalLM:
        for step in steps:
            ids = tokens(2, 23, seed=step)
            model.train()(ids, labels=ids, use_cache=False).loss.backward()
            after_step(model)
        return model

    def state(model: PlaitForCausalLM) -> dict[str, Tensor]:
        return {name: buffer.clone() for name, buffer in model.named_buffers()}

    def same(one: dict[str, Tensor], other: dict[str, Tensor], why: str) -> None:
        moved = [name for name, value in one.items() if not torch.equal(value, other[name])]
        assert not moved, f"{why}: {moved}"

    whole = state(train(tiny_model(case), range(4)))
    model = train(tiny_model(case), range(2))
    before = state(model)
    cache = PlaitCache(model.config)
    with torch.no_grad():
        model.eval()(tokens(2, 9), past_key_values=cache)
        model(tokens(2, 1), past_key_values=cache)
    same(before, state(model), "evaluation moves running state")
    again = tiny_model(case)
    again.load_state_dict(model.state_dict())
    same(whole, state(train(again, range(2, 4))), "running state does not go on")
    checkpointed = tiny_model(case)
    checkpointed.gradient_checkpointing_enable()
    same(whole, state(train(checkpointed, range(4))), "recomputation moves running state")


def check_stress(case: str) -> None:
    """Saturated gates and repeated keys give finite outputs and gradients, in one pass or in two."""
    # softmax kernels recompute exp(score - logsumexp) for the gradient, which fp32 carries to scores near 1e8: a
    # convolution in front doubles the powers of the scale in a score, so its square root gives the scores of the others
    scale = 40.0**0.5 if case == "attention-convolution" else 40.0
    model = tiny_model(case, scale=scale, dtype=torch.float32)
    ids = tokens(1, 130)
    ids[:, 20:60] = 5
    output = model(ids, labels=ids)
    output.loss.backward()
    assert torch.isfinite(output.logits).all()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), f"the gradient of {name} is not finite"


@torch.no_grad()
def check_effective_weights(case: str) -> None:
    """``effective_weights`` is causal, and for softmax attention its rows are distributions."""
    if not catalog.get(cases()[case][0]).effective_weights:
        return
    layer = tiny_model(case).model.layers[0].attn
    x = torch.from_numpy(np.random.RandomState(5).standard_normal((2, 9, 32)))
    weights = layer.effective_weights(x)
    assert weights.shape[0] == 2
    assert weights.shape[2:] == (9, 9)
    assert torch.isfinite(weights).all()
    assert torch.equal(weights.triu(1), torch.zeros_like(weights))
    assert (weights.diagonal(dim1=2, dim2=3).abs() > 0).any()
    if layer.has_weights:
        close(weights.sum(-1), torch.ones(weights.shape[:3], dtype=weights.dtype))


@torch.no_grad()
def check_golden(case: str) -> None:
    """Logits equal the stored ones: a change of numbers is seen."""
    stored = json.loads((GOLDEN / f"{case}.json").read_text())
    close(golden_logits(case), torch.tensor(stored["logits"], dtype=torch.float64), 1e-6)


@torch.no_grad()
def golden_logits(case: str) -> Tensor:
    """Logits of the tiny model for a fixed input, every 7th position and 5th word."""
    return tiny_model(case)(tokens(1, 50)).logits[0, ::7, ::5]


CHECKS: dict[str, Callable[[str], None]] = {
    name.removeprefix("check_"): function for name, function in list(globals().items()) if name.startswith("check_")
}

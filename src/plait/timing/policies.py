"""Policies against the same model with dense attention (SDPA), in turns: reading a prompt, and one token after it.

The model has random weights, so its attention is spread thin: the output error says how far a policy's output is from
dense attention's there, not what it costs a trained model; ``plait frontier`` measures that.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from plait import catalog
from plait.models.cache import CACHE_NAME
from plait.policies import policy
from plait.timing.ratios import Ratio, ratio, take_turns

#: A decoder of 4 layers, 8 query heads on 2 key-value heads, 64 channels each.
SIZES = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 256,
}


#: Options that a policy cannot do without: a table of heads, here half of them full.
NEEDED: dict[str, dict[str, Any]] = {"duo_attention": {"heads": [[1.0, 0.0]] * SIZES["num_hidden_layers"]}}


@dataclass(frozen=True)
class PolicyTiming:
    """One policy in one phase.

    Args:
        policy: with its default options.
        phase: ``prefill`` or ``decode``.
        tokens: of the prompt, or of the context before the timed token.
        milliseconds, dense_milliseconds: medians, of the whole model.
        speed: dense attention's time over the policy's.
        pairs: scored pairs per dense pair, in this phase.
        cache: bytes held per byte of a dense cache.
        error: of the last token's logits, relative to dense attention's.
    """

    policy: str
    phase: str
    tokens: int
    milliseconds: float
    dense_milliseconds: float
    speed: Ratio
    pairs: float
    cache: float
    error: float


def chosen_policies(names: Sequence[str]) -> list[str]:
    """These policies, or all that can do without a table of heads.

    Raises:
        CatalogError: there is no such policy.
    """
    for name in names:
        catalog.get(name, "policy")
    return list(names) or catalog.names("policy", combines=False)


def time_policies(
    names: Sequence[str], prompt: int, context: int, repeats: int, announce: Callable[[str], None]
) -> list[PolicyTiming]:
    """Time each policy at its default options, in both phases.

    Args:
        names: of policies.
        prompt: tokens that are read in one pass.
        context: tokens before the decoded one.
        repeats: turns.
        announce: told what begins.
    """
    model, peer = _model(), _model()
    ids = torch.randint(0, SIZES["vocab_size"], (1, max(prompt, context)), generator=torch.Generator().manual_seed(0))
    announce(f"dense, {context} tokens")
    with torch.no_grad():
        before = peer(input_ids=ids[:, :context], use_cache=True, logits_to_keep=1)
        timings = []
        for name in names:
            announce(f"{name}, prefill of {prompt}")
            timings.append(_prefill(name, model, peer, ids[:, :prompt], repeats))
            announce(f"{name}, one token after {context}")
            timings.append(_decode(name, model, peer, ids[:, :context], before[CACHE_NAME], repeats))
    return timings


def _model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {**SIZES, "attn_implementation": "sdpa", "max_position_embeddings": 2**17}
    return LlamaForCausalLM(LlamaConfig(**sizes)).eval()


def _prefill(name: str, model: Any, peer: Any, ids: Tensor, repeats: int) -> PolicyTiming:
    def read(reader: Any) -> Tensor:
        logits: Tensor = reader(input_ids=ids, use_cache=True, logits_to_keep=1).logits
        return logits

    with policy(model, name, **NEEDED.get(name, {})) as applied:
        error = _difference(read(model), read(peer))
        report = applied.report()
        seconds = take_turns({"policy": lambda: read(model), "dense": lambda: read(peer)}, repeats, warm_up=False)
    work = report.prefill
    return _timing(name, "prefill", ids.shape[1], seconds, int(work.pairs) / int(work.dense_pairs), report, error)


def _decode(name: str, model: Any, peer: Any, ids: Tensor, dense_cache: Any, repeats: int) -> PolicyTiming:
    length, token = ids.shape[1], ids[:, :1]
    with policy(model, name, **NEEDED.get(name, {})) as applied:
        cache = model(input_ids=ids, use_cache=True, logits_to_keep=1)[CACHE_NAME]
        applied.reset_report()

        def step(decoder: Any, past: Any) -> Tensor:
            logits: Tensor = decoder(input_ids=token, use_cache=True, **{CACHE_NAME: past}).logits
            return logits

        error = _difference(step(model, cache), step(peer, dense_cache))
        dense_cache.crop(length - dense_cache.get_seq_length())
        seconds = take_turns(
            {"policy": lambda: step(model, cache), "dense": lambda: step(peer, dense_cache)}, repeats, shortest=0.2
        )
        dense_cache.crop(length - dense_cache.get_seq_length())
        report = applied.report()
    work = report.decode
    return _timing(name, "decode", length, seconds, int(work.pairs) / int(work.dense_pairs), report, error)


def _timing(
    name: str, phase: str, tokens: int, seconds: dict[str, list[float]], pairs: float, report: Any, error: float
) -> PolicyTiming:
    return PolicyTiming(
        policy=name,
        phase=phase,
        tokens=tokens,
        milliseconds=1e3 * statistics.median(seconds["policy"]),
        dense_milliseconds=1e3 * statistics.median(seconds["dense"]),
        speed=ratio(seconds["policy"], seconds["dense"]),
        pairs=pairs,
        cache=report.bytes_held / report.bytes_held_dense,
        error=error,
    )


def _difference(ours: Tensor, dense: Tensor) -> float:
    return float((ours - dense).norm() / dense.norm())

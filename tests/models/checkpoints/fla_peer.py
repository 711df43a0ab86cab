"""A model of flash-linear-attention beside plait's, both from one folder; run as a script, prints differences as JSON.

fla's kernels run under Triton's interpreter, which needs its environment variable before Triton is imported: hence a
process of its own. The interpreter lacks three things that are added here: timing of kernel variants (the first is
taken), loop counters with ``.to``, and masks of whole numbers. Softmax attention stands in for the package flash-attn.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import pkgutil
import sys
import types
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "vocab_size": 61,
    "intermediate_size": 48,
    "fuse_cross_entropy": False,
}
HYBRID = {"attn": {"layers": [1], "num_heads": 2, "num_kv_heads": 1, "qkv_bias": True, "window_size": 6}}
#: By case: prefix of fla's classes, fields beside the sizes.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "retnet": ("RetNet", {"num_heads": 2}),
    "hgrn": ("HGRN", {}),
    "hgrn2": ("HGRN2", {"expand_ratio": 16}),
    "gla": ("GLA", {"num_heads": 2}),
    "delta_net": ("DeltaNet", {"num_heads": 2}),
    "gated_deltanet": ("GatedDeltaNet", {"num_heads": 2, "head_dim": 16, "expand_v": 1.0}),
    "kda": ("KDA", {"num_heads": 2, "head_dim": 16}),
    "transformer": ("Transformer", {"num_heads": 2, "qk_norm": True}),
    "hybrid": ("HGRN2", {"expand_ratio": 16, **HYBRID}),
    "hybrid-gated": ("GatedDeltaNet", {"num_heads": 2, "head_dim": 16, "output_gate_activation": "sigmoid", **HYBRID}),
}
LENGTH = 12


class Counter(int):
    """A loop's counter that can be cast, as those of compiled kernels."""

    def to(self, dtype: Any) -> Counter:
        return self

    def __add__(self, other: Any) -> Any:
        total = super().__add__(other)
        return Counter(total) if isinstance(total, int) else total

    def __sub__(self, other: Any) -> Any:
        rest = super().__sub__(other)
        return Counter(rest) if isinstance(rest, int) else rest

    def __mul__(self, other: Any) -> Any:
        other = getattr(other, "value", other)  # a constant of the kernel
        product = super().__mul__(other) if isinstance(other, int) else NotImplemented
        return Counter(product) if isinstance(product, int) else product


def counted(*bounds: Any, **options: Any) -> Iterator[Counter]:
    return (Counter(i) for i in builtins.range(*(int(bound) for bound in bounds)))


def prepare() -> None:
    """Turn on and complete the interpreter, and stand in for flash-attn."""
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
    from triton.runtime import interpreter
    from triton.runtime.autotuner import Autotuner

    tuned = ("num_warps", "num_stages", "num_ctas", "maxnreg", "ir_override")

    def first(self: Any, *args: Any, **kwargs: Any) -> Any:
        options = {k: v for k, v in self.configs[0].all_kwargs().items() if k not in tuned}
        return self.fn.run(*args, **kwargs, **options)

    Autotuner.run = first
    builder = interpreter.InterpreterBuilder
    for name, position in (("create_masked_load", 1), ("create_masked_store", 2)):
        original = getattr(builder, name)

        def with_switches(self: Any, *args: Any, original: Any = original, position: int = position) -> Any:
            args[position].data = args[position].data.astype(bool)
            return original(self, *args)

        setattr(builder, name, with_switches)
    flash = types.ModuleType("flash_attn")
    flash.__spec__ = ModuleSpec("flash_attn", None)
    flash.flash_attn_func = attention
    flash.flash_attn_varlen_func = documents
    sys.modules["flash_attn"] = flash


def count_in_kernels() -> None:
    """Loops of fla's kernels count with :class:`Counter`."""
    ops = importlib.import_module("fla.ops")
    for found in pkgutil.walk_packages(ops.__path__, "fla.ops."):
        module = sys.modules.get(found.name)
        if module is not None and "triton" in vars(module):
            module.range = counted  # type: ignore[attr-defined]


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, window_size: tuple[int, int]) -> Tensor:
    """``(B, T, H, D)``, the queries the newest of the keys; ``window_size`` counts keys before the query's own."""
    distance = torch.arange(k.shape[1] - q.shape[1], k.shape[1])[:, None] - torch.arange(k.shape[1])
    seen = distance >= 0
    if window_size[0] >= 0:
        seen &= distance <= window_size[0]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True).transpose(1, 2)


def documents(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    causal: bool,
    window_size: Any,
    **_: Any,
) -> Tensor:
    """The same within each document of ``(tokens, H, D)``."""
    rows = zip(
        q.split(cu_seqlens_q.diff().tolist()),
        k.split(cu_seqlens_k.diff().tolist()),
        v.split(cu_seqlens_k.diff().tolist()),
        strict=True,
    )
    return torch.cat([attention(a[None], b[None], c[None], causal, window_size)[0] for a, b, c in rows])


def main(case: str, folder: Path) -> dict[str, Any]:
    """Largest differences of logits, and the largest relative one of a parameter's gradient."""
    prepare()
    import fla
    import fla.models

    from plait.models.checkpoints import load_fla

    name, fields = CASES[case]
    torch.manual_seed(0)
    config = getattr(fla.models, f"{name}Config")(**SIZES, **fields)
    theirs = getattr(fla.models, f"{name}ForCausalLM")(config).eval()
    count_in_kernels()
    theirs.save_pretrained(folder)
    ours = load_fla(folder)
    ids = torch.randint(1, 61, (2, LENGTH))
    found: dict[str, Any] = {"fla": fla.__version__}

    expected, actual = theirs(ids, use_cache=False).logits, ours(ids, use_cache=False).logits
    found["spread"] = actual.std().item()
    found["logits"] = (actual - expected).abs().max().item()
    weights = torch.randn(actual.shape)
    (expected * weights).sum().backward()
    (actual * weights).sum().backward()
    gradients = {
        n.replace("shared.hgrn2.hgrn2_", "").replace("shared.hgrn.hgrn_", ""): p for n, p in ours.named_parameters()
    }
    changes = []
    for key, parameter in theirs.named_parameters():
        mine, other = gradients[key].grad, parameter.grad
        assert (mine is None) == (other is None), key  # bounds of a hybrid may bound no layer
        if mine is not None and other is not None:
            changes.append(float((mine - other).norm() / (other.norm() + 1e-6)))
    found["gradient"] = max(changes)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    with torch.no_grad():
        whole = ours(ids, attention_mask=mask).logits
        padded = theirs(ids, attention_mask=mask, use_cache=False).logits
        found["padding"] = (whole - padded)[mask.bool()].abs().max().item()
        their_cache, our_cache, start, steps = None, None, 0, []
        for length in (7, 1, 1):
            seen, part = mask[:, : start + length], ids[:, start : start + length]
            a = theirs(part, attention_mask=seen, past_key_values=their_cache, use_cache=True)
            b = ours(part, attention_mask=seen, past_key_values=our_cache, use_cache=True)
            their_cache, our_cache = a.past_key_values, b.past_key_values
            steps.append((a.logits - b.logits)[seen[:, start:].bool()].abs().max().item())
            start += length
        found["decoding"] = max(steps)
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))

"""Multi-head latent attention against its definition, and the two ways to compute it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mixers.layers import heads, inputs, make, near, rms, run
from plait import catalog
from plait.errors import OptionError
from plait.mixers.base import Dims
from plait.mixers.context import Context
from plait.mixers.mla import MLA, LatentSizes
from plait.nn.rotary import rotary


def naive(m: MLA, x: Tensor, turn: bool) -> Tensor:
    """Keys and values of every head written out, one query after the other."""
    H, K, R, _, C = m.sizes
    q = x @ m.q_proj.weight.T if hasattr(m, "q_proj") else rms(x @ m.q_a_proj.weight.T, m.q_a_norm.weight)
    q = heads(q if hasattr(m, "q_proj") else q @ m.q_b_proj.weight.T, H)
    compressed = x @ m.kv_a_proj.weight.T
    kv = heads(rms(compressed[..., :C], m.kv_a_norm.weight) @ m.kv_b_proj.weight.T, H)
    shared = compressed[..., None, C:]
    positions = torch.arange(x.shape[1]).expand(x.shape[0], -1)
    turned = [rotary(y, positions, 10000.0) if turn else y for y in (q[..., K:], shared)]
    q = torch.cat([q[..., :K], turned[0]], dim=-1)
    k = torch.cat([kv[..., :K], turned[1].expand(-1, -1, H, -1)], dim=-1)
    rows = []
    for t in range(x.shape[1]):
        scores = torch.einsum("bhd,bshd->bhs", q[:, t], k[:, : t + 1]) / (K + R) ** 0.5
        rows.append(torch.einsum("bhs,bshv->bhv", F.softmax(scores, -1), kv[:, : t + 1, :, K:]))
    return torch.stack(rows, dim=1).flatten(2) @ m.o_proj.weight.T


OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_heads": 3, "q_lora_rank": 10, "kv_lora_rank": 7, "v_head_dim": 5, "qk_rope_head_dim": 2},
    {"num_heads": 2, "rope_base": None, "qk_rope_head_dim": 3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_layer_is_its_definition(options: dict[str, Any]) -> None:
    m, x = make("mla", **options), inputs()
    near(run(m, x), naive(m, x, options.get("rope_base", 1) is not None))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@torch.no_grad()
def test_decoding_on_latent_vectors_is_the_same(options: dict[str, Any]) -> None:
    m, x = make("mla", **options), inputs()
    state = m.new_state()
    first = m(x[:, :15], Context(torch.arange(15).expand(2, -1), state=state, phase="prefill"))
    steps = [
        m(x[:, t : t + 1], Context(torch.full((2, 1), t), state=state, phase="decode")) for t in range(15, x.shape[1])
    ]
    near(torch.cat([first, *steps], dim=1), run(m, x))


def test_what_is_cached_does_not_depend_on_the_number_of_heads() -> None:
    """DeepSeek-V2 caches 512 + 64 numbers a token and layer for 128 heads of 128 channels (2405.04434, table 1)."""
    options = {"qk_nope_head_dim": 128, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    cls = catalog.get("mla").load()
    few, many = (cls.Options.parse("mla", options | {"num_heads": heads}) for heads in (16, 128))
    dims = Dims(5120)
    assert cls.cost(dims, 1000, few).state_bytes == cls.cost(dims, 1000, many).state_bytes == 1000 * 576 * 2
    assert cls.cost(dims, 1000, many).flops_prefill == 1000**2 * 128 * (128 + 64 + 128)
    assert cls.cost(dims, 999, many).flops_decode == 2 * 1000 * 128 * (512 + 64 + 512)


def test_sizes_follow_those_of_deepseek() -> None:
    options = catalog.get("mla").load().Options
    assert options().heads(Dims(2048)) == LatentSizes(16, 128, 64, 128, 512)
    with pytest.raises(OptionError, match=r"num_heads=7: does not divide hidden_size 2048; set qk_nope_head_dim"):
        options(num_heads=7).heads(Dims(2048))
    with pytest.raises(OptionError, match=r"qk_rope_head_dim=3: rotary pairs need an even number"):
        options(qk_rope_head_dim=3)
    with pytest.raises(OptionError, match=r"kv_lora_rank=0: must be above 0"):
        options(kv_lora_rank=0)


class Sizes(TorchDispatchMode):
    """The largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.numel())
        return result


def test_a_training_step_makes_no_tensor_with_an_entry_for_every_pair() -> None:
    m, length = make("mla", num_heads=2, kv_lora_rank=7, v_head_dim=5), 1024
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, length, m.dims.hidden_size, generator=generator, dtype=torch.float64, requires_grad=True)
    with Sizes() as sizes:
        m(x, Context.plain(x)).sum().backward()
    assert sizes.largest < length**2 / 4

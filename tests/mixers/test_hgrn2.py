"""HGRN2 against its recurrence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mixers.layers import heads, inputs, make, near, plain_convolution, rms, run, shared
from plait.mixers import Context
from plait.mixers.hgrn2 import HGRN2


def naive(m: HGRN2, x: Tensor, layer: int, H: int, lower: Tensor | None, convolved: bool = False) -> Tensor:
    """The layer as a loop over tokens."""
    q, z, v = (x @ getattr(m, f"{n}_proj").weight.T for n in "qfi")
    if convolved:
        q, z, v = (plain_convolution(y, getattr(m, f"{n}_conv1d").weight) for y, n in ((q, "q"), (z, "f"), (v, "i")))
    f = torch.sigmoid(z)
    if lower is not None:
        shares = lower.softmax(0)
        lb = shares.cumsum(0)[layer] - shares[0]
        f = lb + (1 - lb) * f
    q, f, v = heads(F.silu(q), H), heads(f, H), heads(v, H)
    state = x.new_zeros(x.shape[0], H, q.shape[-1], v.shape[-1])
    outputs = []
    for t in range(x.shape[1]):
        state = f[:, t, ..., None] * state + (1 - f[:, t])[..., None] * v[:, t, :, None]
        outputs.append((q[:, t, :, None] @ state).squeeze(-2) * q.shape[-1] ** -0.5)
    o = torch.stack(outputs, dim=1).flatten(2)  # normed over the whole width, not per head
    return rms(o, m.g_norm.weight, m.options.norm_eps or 1e-6) @ m.o_proj.weight.T


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_layer_is_its_recurrence(layer: int) -> None:
    m = make("hgrn2", layer=layer)
    x = inputs(length=70)
    near(run(m, x), naive(m, x, layer, 2, shared(m)["hgrn2_lower_bounds"]))


@pytest.mark.parametrize("options", [{"expand_ratio": 6}, {"num_heads": 4}, {"num_heads": 4, "expand_ratio": 3}])
def test_heads_and_convolution(options: dict[str, int]) -> None:
    m = make("hgrn2", use_lower_bound=False, use_short_conv=True, **options)
    x = inputs()
    near(run(m, x), naive(m, x, 1, 4, None, convolved=True))


def test_the_key_is_what_the_gate_forgets() -> None:
    m = make("hgrn2")
    x = inputs()
    r = m.recurrence(x, Context.plain(x, parameters=shared(m)))
    near(r.k + r.log_decay.exp(), torch.ones_like(r.k), 1e-15)


def test_the_norm_of_the_read_out_has_its_own_epsilon() -> None:
    """1e-5 unless an option says otherwise, which small read-outs show; None is the model's."""
    x = inputs() * 1e-2
    outputs = []
    for options, eps in (({}, 1e-5), ({"norm_eps": 1e-3}, 1e-3), ({"norm_eps": None}, 1e-6)):
        m = make("hgrn2", use_lower_bound=False, **options)
        assert m.g_norm.eps == eps
        outputs.append(run(m, x))
        near(outputs[-1], naive(m, x, 1, 2, None))
    assert (outputs[0] - outputs[2]).norm() > 0.1 * outputs[2].norm()

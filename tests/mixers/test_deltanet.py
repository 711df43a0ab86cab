"""DeltaNet against its recurrence, and what its memory can do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mixers.layers import heads, inputs, make, near, plain_convolution, rms, run, unit
from plait.mixers import Context
from plait.mixers.deltanet import NORMS as NORMED
from plait.mixers.deltanet import DeltaNet
from plait.mixers.linear import Recurrence

MAPS = {"silu": F.silu, "relu": F.relu, "elu": lambda x: F.elu(x) + 1, "identity": lambda x: x}
NORMS = {
    "l2": unit,
    "signed_sum": lambda x: x / x.sum(-1, keepdim=True),
    "abs_sum": lambda x: x / x.abs().sum(-1, keepdim=True),
}


def naive(m: DeltaNet, x: Tensor, qk: str = "silu", norm: str = "l2", scale: float = 1.0) -> Tensor:
    """The layer as a product of rank-one corrections of the state."""
    q, k, v = (plain_convolution(x @ getattr(m, f"{n}_proj").weight.T, getattr(m, f"{n}_conv1d").weight) for n in "qkv")
    q, k, v = NORMS[norm](MAPS[qk](heads(q, 2))), NORMS[norm](MAPS[qk](heads(k, 2))), heads(F.silu(v), 2)
    beta = scale * torch.sigmoid(x @ m.b_proj.weight.T)[..., None, None]
    K = q.shape[-1]
    state = x.new_zeros(x.shape[0], 2, K, v.shape[-1])
    outputs = []
    for t in range(x.shape[1]):
        erase = torch.eye(K, dtype=x.dtype) - beta[:, t] * k[:, t, :, :, None] * k[:, t, :, None, :]
        state = erase @ state + beta[:, t] * k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append((q[:, t, :, None, :] @ state).squeeze(-2) * K**-0.5)
    return rms(torch.stack(outputs, dim=1), m.o_norm.weight).flatten(2) @ m.o_proj.weight.T


@pytest.mark.parametrize(
    ("qk", "norm"),
    [
        ("silu", "l2"),
        ("relu", "l2"),
        ("identity", "l2"),
        ("elu", "signed_sum"),
        ("silu", "abs_sum"),
        ("identity", "abs_sum"),
    ],
)
def test_layer_is_its_recurrence(qk: str, norm: str) -> None:
    m = make("deltanet", qk_activation=qk, qk_norm=norm)
    x = inputs()
    near(run(m, x), naive(m, x, qk, norm))


def test_wide_values_and_doubled_beta() -> None:
    m = make("deltanet", expand_k=0.5, expand_v=1.5, num_heads=2, allow_neg_eigval=True)
    x = inputs(length=70)
    near(run(m, x), naive(m, x, scale=2.0))


def memory(beta: float) -> DeltaNet:
    """One head of 4 channels that stores ``x[4:]`` under the key ``x[:4]`` and returns what the key reads."""
    m = make("deltanet", hidden=8, num_heads=1, expand_k=0.5, expand_v=0.5, use_short_conv=False)
    m.recurrence = lambda x, _: _stored(x, beta)  # type: ignore[method-assign]
    return m


def _stored(x: Tensor, beta: float) -> Recurrence:
    key = x[..., None, :4]
    return Recurrence(key * 2, key, x[..., None, 4:], beta=torch.full(x.shape[:2], beta).double()[..., None])


def test_a_key_returns_its_latest_value() -> None:
    """With beta 1 and orthonormal keys; a sum of outer products would return the sum of what was written."""
    keys = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 1, 3, 0]]
    values = torch.randn(6, 4, dtype=torch.float64)
    x = torch.cat([keys, values], dim=-1)[None]
    m = memory(1.0)
    read = m.run(m.recurrence(x, Context.plain(x)), Context.plain(x))
    near(read[0, :, 0], values, 1e-14)  # the read comes after the write; the scale 4^-1/2 cancels the query's 2
    state = m.new_state()
    m.run(m.recurrence(x, Context.plain(x)), Context.plain(x, state=state))
    near(state["recurrent"].value[0, 0], values[[5, 3, 2, 4]], 1e-14)


@pytest.mark.parametrize("beta", [0.1, 0.9, 1.5, 2.0])
def test_one_write_scales_the_component_along_the_key(beta: float) -> None:
    """By 1 - beta, which ``allow_neg_eigval`` lets fall to -1: a flip; the rest of the state stays."""
    m = memory(beta)
    before = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    state = m.new_state()
    state["recurrent"].value = before
    key = unit(torch.randn(1, 1, 4, dtype=torch.float64)) * (1 + 1e-6) ** 0.5
    x = torch.cat([key, torch.zeros_like(key)], dim=-1)
    m.run(m.recurrence(x, Context.plain(x)), Context.plain(x, state=state))
    along = key[0, 0] / key.norm()
    after = state["recurrent"].value[0, 0]
    near(along @ after, (1 - beta) * (along @ before[0, 0]), 1e-5)
    project = torch.eye(4, dtype=torch.float64) - torch.outer(along, along)
    near(project @ after, project @ before[0, 0], 1e-5)


def test_strength_is_1_without_beta() -> None:
    x = inputs()
    r = make("deltanet", use_beta=False).recurrence(x, Context.plain(x))
    assert torch.equal(r.beta, torch.ones(2, 19, 2, dtype=torch.float64))


def test_eigenvalues_of_a_write_stay_in_range() -> None:
    """Eigenvalues of I - beta k k^T lie in [1 - beta, 1]; beta is in (0, 1), or (0, 2) on request."""
    x = 5 * inputs(length=40)
    for negative, top in ((False, 1.0), (True, 2.0)):
        m = make("deltanet", allow_neg_eigval=negative)
        r = m.recurrence(x, Context.plain(x))
        assert r.beta.min() > 0
        assert r.beta.max() < top
        assert r.beta.max() > 0.9 * top
        k = r.k[..., :, None] * r.k[..., None, :]
        values = torch.linalg.eigvalsh(torch.eye(12, dtype=x.dtype) - r.beta[..., None, None] * k)
        assert values.max() < 1 + 1e-12
        assert (values.min(-1).values >= 1 - r.beta - 1e-12).all()


def test_sums_of_signed_entries_and_of_their_sizes() -> None:
    x = torch.tensor([[1.0, -3.0], [0.0, 0.0], [2.0, 6.0]]).double()
    near(NORMED["signed_sum"](x), torch.tensor([[-0.5, 1.5], [0.0, 0.0], [0.25, 0.75]]).double())
    near(NORMED["abs_sum"](x), torch.tensor([[0.25, -0.75], [0.0, 0.0], [0.25, 0.75]]).double())

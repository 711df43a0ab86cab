"""HGRN against its recurrence, and the lower bounds of its gates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mixers.layers import HIDDEN, LAYERS, inputs, make, near, plain_convolution, rms, run, shared
from plait.errors import OptionError
from plait.mixers import Context, Dims
from plait.mixers.hgrn import HGRN
from plait.mixers.lower_bounds import log_bound, log_forget_gate


def bound(increments: Tensor, layer: int) -> Tensor:
    """The card's formula: cumulative softmax over the layers less its first row."""
    shares = increments.softmax(0)
    return shares.cumsum(0)[layer] - shares[0]


def naive(m: HGRN, x: Tensor, layer: int, lower: Tensor | None, convolved: bool = False) -> Tensor:
    """The layer as a loop over tokens."""
    i, z = x @ m.i_proj.weight.T, x @ m.f_proj.weight.T
    if convolved:
        i, z = plain_convolution(i, m.i_conv1d.weight), plain_convolution(z, m.f_conv1d.weight)
    f = torch.sigmoid(z)
    if lower is not None:
        lb = bound(lower, layer)
        f = lb + (1 - lb) * f
    u = F.silu(i) * (1 - f)
    h, outputs = torch.zeros_like(u[:, 0]), []
    for t in range(x.shape[1]):
        h = f[:, t] * h + u[:, t]
        outputs.append(h)
    o = rms(torch.stack(outputs, dim=1), m.g_norm.weight) * F.silu(x @ m.g_proj.weight.T)
    return o @ m.o_proj.weight.T


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_layer_is_its_recurrence(layer: int) -> None:
    m = make("hgrn", layer=layer)
    x = inputs(length=70)
    near(run(m, x), naive(m, x, layer, shared(m)["hgrn_lower_bounds"]))


def test_options() -> None:
    m = make("hgrn", expand_ratio=2, use_lower_bound=False, use_short_conv=True)
    x = inputs()
    near(run(m, x), naive(m, x, 1, None, convolved=True))
    assert HGRN.shared_parameters(m.dims, m.options) == {}


def test_bounds_at_the_start_are_the_share_of_the_depth() -> None:
    parameter = HGRN.shared_parameters(Dims(HIDDEN, 6), HGRN.Options())["hgrn_lower_bounds"]
    assert parameter.shape == (6, HIDDEN)
    for layer in range(1, 6):
        log_lb, log_rest = log_bound(parameter, layer)
        near(log_lb.exp(), torch.full((HIDDEN,), layer / 6), 1e-6)
        near(log_rest.exp(), torch.full((HIDDEN,), 1 - layer / 6), 1e-6)


def test_bounds_never_fall_with_depth() -> None:
    parameter = 8 * torch.randn(7, HIDDEN, dtype=torch.float64)
    bounds = torch.stack([log_bound(parameter, layer)[0].exp() for layer in range(1, 7)])
    assert (bounds.diff(dim=0) >= 0).all()
    near(bounds, torch.stack([bound(parameter, layer) for layer in range(1, 7)]), 1e-12)
    near(bounds[-1], 1 - parameter.softmax(0)[0], 1e-12)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_the_gate_never_falls_below_its_bound(layer: int) -> None:
    parameter = torch.randn(LAYERS, HIDDEN, dtype=torch.float64)
    logits = 30 * inputs()
    context = Context.plain(logits, parameters={"bounds": parameter})
    gate = log_forget_gate(logits, context, "bounds", layer).exp()
    lowest = bound(parameter, layer)
    assert (gate >= lowest - 1e-12).all()
    assert (gate.amin((0, 1)) - lowest < 0.05).all()  # and reaches it


@pytest.mark.parametrize("extreme", [-200.0, 200.0])
def test_saturated_bounds_have_finite_gradients(extreme: float) -> None:
    """A bound that rounds to 0, or to 1, in fp32."""
    parameter = torch.zeros(LAYERS, HIDDEN)
    parameter[0] = extreme
    parameter.requires_grad_(True)
    logits = torch.linspace(-1e4, 1e4, HIDDEN).expand(1, 3, HIDDEN).clone().requires_grad_(True)
    gate = log_forget_gate(logits, Context.plain(logits, parameters={"bounds": parameter}), "bounds", 2)
    (gate.exp() + gate.clamp(min=-50)).sum().backward()
    for tensor in (gate, parameter.grad, logits.grad):
        assert torch.isfinite(tensor).all()


def test_gradient_reaches_every_row_of_the_parameter() -> None:
    """Rows of other layers count through the softmax."""
    m = make("hgrn", layer=1)
    parameter = shared(m)["hgrn_lower_bounds"].requires_grad_(True)
    x = inputs()
    m(x, Context.plain(x, parameters={"hgrn_lower_bounds": parameter})).sum().backward()
    assert (parameter.grad.abs() > 0).all()


def test_a_layer_without_its_model_says_what_it_needs() -> None:
    m = make("hgrn", layer=1)
    x = inputs()
    with pytest.raises(OptionError, match=r"hgrn_lower_bounds.*use_lower_bound=False"):
        m(x, Context.plain(x))
    first = make("hgrn", layer=0)  # its bound is 0 whatever the parameter is
    near(first(x, Context.plain(x)), run(first, x))


def test_effective_weights_give_the_state() -> None:
    m = make("hgrn")
    x = inputs(length=9)
    context = Context.plain(x, parameters=shared(m))
    weights = m.effective_weights(x, context)
    h = torch.einsum("bdts,bsd->btd", weights, F.silu(x @ m.i_proj.weight.T))
    o = rms(h, m.g_norm.weight) * F.silu(x @ m.g_proj.weight.T)
    near(o @ m.o_proj.weight.T, m(x, context))

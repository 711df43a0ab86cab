"""A gradient of a gradient is right, or refused by name: never a constant in disguise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ops.cases import DECAYS, inputs
from plait import ops
from plait.distributed.sequence import moves
from plait.errors import BackendUnavailable
from plait.ops import fla
from plait.ops.native import absent

HAND_WRITTEN = ["torch", pytest.param("native", marks=pytest.mark.skipif(absent() is not None, reason="not compiled"))]
Loss = Callable[[], Tensor]


def second(loss: Tensor, first: Tensor, other: Tensor) -> Tensor:
    """The derivative by ``other`` of the summed gradient by ``first``, beside a term that hides a missing graph."""
    (gradient,) = torch.autograd.grad(loss, first, create_graph=True)
    return torch.autograd.grad(gradient.sum() + other.square().sum(), other)[0]


def scanned(backend: str) -> tuple[Tensor, list[Tensor]]:
    log_a, u = (-torch.rand(2, 9, 5)).requires_grad_(), torch.rand(2, 9, 5, requires_grad=True)
    return ops.linear_scan(log_a, u, backend=backend)[0].sum(), [log_a, u]


@pytest.mark.parametrize("backend", HAND_WRITTEN)
def test_the_scan_refuses(backend: str) -> None:
    for first, other in ((0, 0), (0, 1), (1, 0)):
        loss, leaves = scanned(backend)
        with pytest.raises(BackendUnavailable, match=r'first derivative only.*backend="reference"'):
            second(loss, leaves[first], leaves[other])


@pytest.mark.parametrize("backend", HAND_WRITTEN)
@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("length", [20, 600])
def test_attention_refuses(length: int, decay: str, delta: bool, backend: str) -> None:
    """The loss is linear in the output, so that the incoming gradient is a constant and only saved tensors matter."""
    given = inputs(length, B=1, decay=decay, delta=delta, dtype=torch.float32)
    for name in ("q", "log_decay" if decay != "none" else "k"):
        leaves = given.leaves()
        loss = leaves.run(backend=backend)[0].sum()
        with pytest.raises(BackendUnavailable, match="first derivative only"):
            second(loss, getattr(leaves, name), leaves.k if name == "q" else getattr(leaves, name))


@pytest.mark.skipif(absent() is not None, reason="the kernels are not compiled")
def test_the_compiled_convolution_refuses_and_pytorch_serves() -> None:
    x, weight = torch.rand(1, 9, 5, requires_grad=True), torch.rand(5, 4, requires_grad=True)
    with pytest.raises(BackendUnavailable, match="first derivative only"):
        second(ops.causal_convolution(x, weight)[0].sum(), x, weight)
    for backend in ("reference", "torch"):
        with ops.backend(backend):
            assert not torch.equal(second(ops.causal_convolution(x, weight)[0].sum(), x, weight), 2 * weight)


def test_first_derivatives_are_the_same_with_a_graph() -> None:
    for backend in ("torch", "native" if absent() is None else "torch"):
        loss, leaves = scanned(backend)
        plain = torch.autograd.grad(loss, leaves, retain_graph=True)
        assert all(map(torch.equal, plain, torch.autograd.grad(loss, leaves, create_graph=True)))


def test_the_reference_has_second_derivatives() -> None:
    given = inputs(4, B=1, H=1, HV=1, K=2, V=2, decay="channel", delta=True)
    leaves = given.leaves()

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v, beta, log_decay, state = tensors
        return ops.delta_rule(q, k, v, beta, log_decay, state=state, backend="reference")

    assert torch.autograd.gradgradcheck(run, tuple(leaves.tensors()))
    log_a, u = (-torch.rand(1, 3, 2).double()).requires_grad_(), torch.rand(1, 3, 2).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda *x: ops.linear_scan(*x, backend="reference"), (log_a, u))


def test_kernels_of_fla_refuse() -> None:
    """Any function that its guard wraps, since the kernels themselves need a GPU."""
    x = torch.rand(3, requires_grad=True)
    y = fla._first_order(lambda x: (x.square(), x.detach()))(x)[0].sum()
    torch.autograd.grad(y, x, retain_graph=True)
    with pytest.raises(BackendUnavailable, match="The fla backend has a first derivative only"):
        torch.autograd.grad(y, x, create_graph=True)


def test_what_travels_between_processes_refuses() -> None:
    class Alone:
        def sum(self, kind: str, x: Tensor) -> Tensor:
            return x.clone()

    x = torch.rand(3, requires_grad=True)
    y = moves.total(Alone(), "loss", x.square()).sum()
    torch.autograd.grad(y, x, retain_graph=True)
    with pytest.raises(BackendUnavailable, match="run in one process"):
        torch.autograd.grad(y, x, create_graph=True)

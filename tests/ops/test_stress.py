"""Decay of any strength, repeated keys and beta up to 2: finite and still equal to the loop, in fp32."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ops.cases import Inputs, assert_equal, inputs, with_gradients
from plait import ops

PATTERNS = {
    "keep": [0.0],
    "fast": [-20.0],
    "forget": [-1e4],
    "mixed": [-0.01, 0.0, -20.0, -0.01, -1e4, -0.01, -0.01, -3.0, -0.5],
    "ends": [-1e4, *[-0.01] * 62, -1e4],
    "minus infinity": [-0.01, -0.5, -torch.inf, -0.01, -0.01, -20.0],
}


@pytest.fixture(params=["torch", "native"], autouse=True)
def _backend(request: pytest.FixtureRequest) -> Iterator[None]:
    status = ops.dispatch.status(request.param)
    if not status.available:
        pytest.skip(f"{status.name}: {status.reason}")
    with ops.backend(request.param):
        yield


def stressed(pattern: list[float], decay: str, delta: bool, T: int = 130) -> Inputs:
    given = inputs(T, K=8, V=4, decay=decay, delta=delta, dtype=torch.float32)
    assert given.log_decay is not None
    steps = torch.tensor(pattern).repeat(T)[:T]
    shape = (1, T, *[1] * (given.log_decay.dim() - 2))
    given.log_decay = steps.view(shape).expand_as(given.log_decay).clone()
    if decay == "channel":  # channels that decay at different times
        for channel in range(8):
            given.log_decay[..., channel] = given.log_decay[..., channel].roll(channel, 1)
    return given


def exact(given: Inputs) -> list[torch.Tensor]:
    doubled = Inputs(*(None if x is None else x.double() for x in vars(given).values()))
    return [x.float() for x in with_gradients(doubled, backend="reference")]


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("decay", ["head", "channel"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_strong_decay(pattern: str, decay: str, delta: bool) -> None:
    given = stressed(PATTERNS[pattern], decay, delta)
    if delta:
        given.beta = given.beta / 2
    expected = exact(given)
    for chunk in (16, 64, 130):
        assert_equal(with_gradients(given, chunk_size=chunk), expected, 1e-5, chunk)


@pytest.mark.parametrize("decay", ["none", "head", "channel"])
def test_repeated_keys_and_full_beta(decay: str) -> None:
    given = inputs(130, K=8, V=4, decay=decay, delta=True, dtype=torch.float32)
    given.k = given.k[:, :1].expand_as(given.k).contiguous()
    for beta in (1.0, 1.5, 2.0):
        given.beta = torch.full_like(given.beta, beta)
        found = with_gradients(given)
        assert all(x.isfinite().all() for x in found)
        # beta = 2 reflects exactly: nothing is forgotten, so errors of 130 steps add up.
        assert_equal(found, exact(given), 2e-4 if beta == 2 else 2e-5, beta)


@pytest.mark.parametrize("decay", ["none", "head", "channel"])
def test_two_alternating_keys_and_negative_eigenvalues(decay: str) -> None:
    given = inputs(130, K=8, V=4, decay=decay, delta=True, dtype=torch.float32)
    given.k = torch.stack([given.k[:, 0], given.k[:, 0] + 1e-3 * given.k[:, 1]], 1).repeat(1, 65, 1, 1)
    given.k = torch.nn.functional.normalize(given.k, dim=-1)
    given.beta = torch.full_like(given.beta, 1.9)
    found = with_gradients(given)
    assert_equal(found, exact(given), 1e-4)


@pytest.mark.parametrize("delta", [False, True])
def test_half_precision_inputs_at_strong_decay(delta: bool) -> None:
    given = stressed(PATTERNS["mixed"], "channel", delta)
    half = Inputs(*(None if x is None else x.bfloat16() for x in vars(given).values()))
    assert all(x.isfinite().all() for x in with_gradients(half))

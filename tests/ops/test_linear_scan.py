"""The scan equals the loop, however long, split, packed or strong its decay."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from ops.cases import LENGTHS, assert_equal
from plait import ops


def made(T: int, B: int = 2, D: int = 5, states: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(T)
    shapes = [(B, T, D), (B, T, D), (states, D)]
    log_a, u, state = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
    return [-log_a.abs(), u, state]


def with_gradients(given: list[Tensor], **options: object) -> list[Tensor]:
    log_a, u, state = leaves = [x.clone().requires_grad_() for x in given]
    results = ops.linear_scan(log_a, u, state=state, **options)
    generator = torch.Generator().manual_seed(7)
    loss = sum((y * torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)).sum() for y in results)
    return [y.detach() for y in results] + list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_equals_reference(dtype: torch.dtype, tolerance: float) -> None:
    for T in (*LENGTHS, 1000):
        given = made(T, dtype=dtype)
        assert_equal(with_gradients(given), with_gradients(given, backend="reference"), tolerance, T)


def test_packed_documents_equal_separate_runs() -> None:
    borders = [0, 1, 2, 18, 50, 51, 130]
    given = made(130, B=1, states=6)
    log_a, u, state = given
    runs = [
        ops.linear_scan(log_a[:, a:b], u[:, a:b], state=state[n : n + 1], backend="reference")
        for n, (a, b) in enumerate(itertools.pairwise(borders))
    ]
    separate = [torch.cat([h for h, _ in runs], 1), torch.cat([s for _, s in runs])]
    packed = {"cu_seqlens": torch.tensor(borders)}
    expected = with_gradients(given, backend="reference", **packed)
    assert_equal(expected[:2], separate, 1e-12)
    assert_equal(with_gradients(given, **packed), expected, 1e-10)
    without = [list(ops.linear_scan(log_a, u, backend=name, **packed)) for name in ("reference", "torch")]
    assert_equal(without[1], without[0], 1e-10)


def test_any_split_equals_one_pass() -> None:
    log_a, u, start = made(70)
    whole = list(ops.linear_scan(log_a, u, state=start))
    for borders in ([0, 1, 70], [0, 33, 34, 70], list(range(71))):
        pieces, state = [], start
        for a, b in itertools.pairwise(borders):
            h, state = ops.linear_scan(log_a[:, a:b], u[:, a:b], state=state)
            pieces.append(h)
        assert_equal([torch.cat(pieces, 1), state], whole, 1e-12, borders)


def test_gradcheck() -> None:
    leaves = [x.requires_grad_() for x in made(7, D=2)]
    assert torch.autograd.gradcheck(lambda a, u, s: ops.linear_scan(a, u, state=s), leaves)


@pytest.mark.parametrize("pattern", [[0.0], [-20.0], [-1e4], [-torch.inf], [0.0, -20.0, -1e4, -0.01, -0.01]])
def test_any_decay_is_exact(pattern: list[float]) -> None:
    log_a, u, state = made(130, dtype=torch.float32)
    steps = torch.tensor(pattern).repeat(130)[:130]
    given = [steps[None, :, None].expand_as(log_a).clone(), u, state]
    exact = with_gradients([x.double() for x in given], backend="reference")
    assert_equal(with_gradients(given), [x.float() for x in exact], 1e-5)


def test_causal_bit_for_bit() -> None:
    log_a, u, state = made(130, dtype=torch.float32)
    h, _ = ops.linear_scan(log_a, u, state=state)
    for t in (1, 64, 129):
        changed = [log_a.clone(), u.clone()]
        for x in changed:
            x[1, t:] = -(x[1, t:].abs()) - 1
        found, _ = ops.linear_scan(*changed, state=state)
        assert torch.equal(found[1, :t], h[1, :t])
        assert torch.equal(found[0], h[0])
        assert not torch.equal(found[1, t], h[1, t])


def test_half_precision_is_computed_in_fp32() -> None:
    log_a, u, _ = (x.bfloat16() for x in made(70))
    h, state = ops.linear_scan(log_a, u)
    expected, expected_state = ops.linear_scan(log_a.float(), u.float())
    assert h.dtype == torch.bfloat16
    assert torch.equal(h, expected.bfloat16())
    assert torch.equal(state, expected_state)

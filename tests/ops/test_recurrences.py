"""The torch backend equals the reference loop: forward, state, gradients, any T, chunk size, split and packing."""

from __future__ import annotations

import itertools

import pytest
import torch

from ops.cases import DECAYS, LENGTHS, Inputs, assert_equal, inputs, with_gradients
from plait import ops
from plait.errors import OptionError
from plait.ops import chunkwise

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("decay", DECAYS)
def test_equals_reference(decay: str, delta: bool, dtype: torch.dtype) -> None:
    for T in LENGTHS:
        given = inputs(T, decay=decay, delta=delta, dtype=dtype)
        expected = with_gradients(given, backend="reference")
        for chunk in (1, 16, 64, T):
            found = with_gradients(given, backend="torch", chunk_size=chunk)
            assert_equal(found, expected, TOLERANCE[dtype], (T, chunk))


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("decay", DECAYS)
def test_without_state(decay: str, delta: bool) -> None:
    for T in (1, 17, 64, 65):
        given = inputs(T, decay=decay, delta=delta, states=None)
        expected = with_gradients(given, backend="reference")
        assert_equal(with_gradients(given, chunk_size=64), expected, 1e-10, T)
        zeros = inputs(T, decay=decay, delta=delta)
        zeros.state = torch.zeros_like(zeros.state)
        assert_equal(list(zeros.run()), expected[:2], 1e-10, T)


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("decay", DECAYS)
def test_any_split_equals_one_pass(decay: str, delta: bool) -> None:
    T = 70
    given = inputs(T, decay=decay, delta=delta)
    whole = list(given.run())
    for borders in ([0, 1, T], [0, 16, T], [0, 64, T], [0, 33, 34, T], list(range(T + 1))):
        pieces, state = [], given.state
        for first, last in itertools.pairwise(borders):
            o, state = given.part(first, last, state).run()
            pieces.append(o)
        assert_equal([torch.cat(pieces, 1), state], whole, 1e-10, borders)


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("decay", DECAYS)
def test_packed_documents_equal_separate_runs(decay: str, delta: bool) -> None:
    borders = [0, 1, 2, 18, 50, 51, 130]
    for first_state in (len(borders) - 1, None):
        given = inputs(borders[-1], B=1, decay=decay, delta=delta, states=first_state)
        outputs, states = [], []
        for n, (first, last) in enumerate(itertools.pairwise(borders)):
            state = None if first_state is None else given.state[n : n + 1]
            o, state = given.part(first, last, state).run(backend="reference")
            outputs.append(o)
            states.append(state)
        separate = [torch.cat(outputs, 1), torch.cat(states)]
        cu_seqlens = torch.tensor(borders)
        assert_equal(list(given.run(backend="reference", cu_seqlens=cu_seqlens)), separate, 1e-12)
        expected = with_gradients(given, backend="reference", cu_seqlens=cu_seqlens)
        for chunk in (1, 16, 64):
            found = with_gradients(given, cu_seqlens=cu_seqlens, chunk_size=chunk)
            assert_equal(found[:2], separate, 1e-10, chunk)
            assert_equal(found, expected, 1e-10, chunk)


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("decay", DECAYS)
def test_segments_equal_one_pass(decay: str, delta: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = inputs(70, decay=decay, delta=delta)
    packed = inputs(70, B=1, decay=decay, delta=delta, states=4)
    cu_seqlens = torch.tensor([0, 1, 40, 49, 70])
    expected = with_gradients(plain, chunk_size=8), with_gradients(packed, chunk_size=8, cu_seqlens=cu_seqlens)
    monkeypatch.setattr(chunkwise, "SEGMENT", 16)
    assert_equal(with_gradients(plain, chunk_size=8), expected[0], 1e-10)
    assert_equal(with_gradients(packed, chunk_size=8, cu_seqlens=cu_seqlens), expected[1], 1e-10)


@pytest.mark.parametrize("segment", [512, 4])
@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("decay", DECAYS)
def test_gradcheck(decay: str, delta: bool, segment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunkwise, "SEGMENT", segment)
    given = inputs(7, B=1, H=1, HV=2, K=2, V=2, decay=decay, delta=delta)

    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = iter(tensors)
        return Inputs(*(None if x is None else next(values) for x in vars(given).values())).run(chunk_size=4)

    assert torch.autograd.gradcheck(run, given.leaves().tensors())


@pytest.mark.parametrize("delta", [False, True])
def test_only_the_output_or_only_the_state_is_used(delta: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for segment in (512, 16):
        monkeypatch.setattr(chunkwise, "SEGMENT", segment)
        given = inputs(40, decay="channel", delta=delta)
        for index in (0, 1):
            grads = []
            for backend in ("reference", "torch"):
                leaves = given.leaves()
                result = leaves.run(backend=backend, chunk_size=8)[index]
                loss = result.square().sum()
                grads.append(list(torch.autograd.grad(loss, leaves.tensors(), materialize_grads=True)))
            assert_equal(grads[1], grads[0], 1e-10, (segment, index))


def test_only_one_input_needs_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunkwise, "SEGMENT", 16)
    given = inputs(40, delta=True)
    everything = with_gradients(given, chunk_size=8)
    for index in range(6):
        leaves = given.leaves()
        for other, x in enumerate(leaves.tensors()):
            x.requires_grad_(other == index)
        o, state = leaves.run(chunk_size=8)
        generator = torch.Generator().manual_seed(7)
        loss = sum((y * torch.randn(y.shape, generator=generator, dtype=y.dtype)).sum() for y in (o, state))
        (found,) = torch.autograd.grad(loss, leaves.tensors()[index])
        assert_equal([found], [everything[2 + index]], 1e-12, index)


def test_value_heads_share_key_heads() -> None:
    given = inputs(20, H=2, HV=6, decay="channel", delta=True)
    repeated = inputs(20, H=2, HV=6, decay="channel", delta=True)
    repeated.q, repeated.k = (x[:, :, [0, 0, 0, 1, 1, 1]] for x in (given.q, given.k))
    assert_equal(list(given.run()), list(repeated.run(backend="reference")), 1e-12)


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("decay", DECAYS)
def test_non_contiguous_inputs(decay: str, delta: bool) -> None:
    given = inputs(33, decay=decay, delta=delta)
    expected = with_gradients(given)
    strided = Inputs(*(None if x is None else x.mT.contiguous().mT if x.dim() > 1 else x for x in vars(given).values()))
    flipped = Inputs(*(None if x is None else x.flip(0).flip(0)[..., :] for x in vars(given).values()))
    broadcast = given.v[:1].expand(2, -1, -1, -1)
    assert not strided.q.is_contiguous()
    assert_equal(list(strided.run()), expected[:2], 1e-12)
    assert_equal(list(flipped.run()), expected[:2], 1e-12)
    given.v = broadcast
    assert_equal(list(given.run()), list(given.run(backend="reference")), 1e-10)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("delta", [False, True])
def test_dtypes(delta: bool, backend: str) -> None:
    exact = inputs(70, decay="channel", delta=delta, dtype=torch.float32)
    half = Inputs(*(None if x is None else x.bfloat16() for x in vars(exact).values()))
    same = Inputs(*(None if x is None else x.float() for x in vars(half).values()))
    o, state = half.run(backend=backend)
    expected, expected_state = same.run(backend=backend)
    assert (o.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(o, expected.bfloat16())
    assert torch.equal(state, expected_state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = exact.run(backend=backend)
    assert_equal(list(found), list(exact.run(backend=backend)), 0.0)
    assert inputs(3, delta=delta).run(backend=backend)[1].dtype == torch.float64


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("decay", DECAYS)
def test_causal_bit_for_bit_and_rows_independent(decay: str, delta: bool) -> None:
    given = inputs(130, decay=decay, delta=delta, dtype=torch.float32)
    o, _ = given.run()
    for t in (0, 1, 63, 64, 100, 129):
        changed = Inputs(*(None if x is None else x.clone() for x in vars(given).values()))
        for x in (changed.q, changed.k, changed.v):
            x[1, t:] = 3 * x[1, t:].flip(1) + 1
        for x in (changed.beta, changed.log_decay):
            if x is not None and x.dim() > 1:
                x[1, t:] *= 0.3
        found, _ = changed.run()
        assert torch.equal(found[1, :t], o[1, :t]), t
        assert torch.equal(found[0], o[0])
        assert not torch.equal(found[1, t], o[1, t])


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("decay", DECAYS)
def test_five_thousand_tokens(decay: str, delta: bool) -> None:
    given = inputs(5000, B=1, H=1, HV=2, K=4, V=4, decay=decay, delta=delta, dtype=torch.float32)
    exact = Inputs(*(None if x is None else x.double() for x in vars(given).values()))
    expected = with_gradients(exact, chunk_size=16)  # segments of other chunks, in fp64
    assert_equal(with_gradients(given), [x.float() for x in expected], 1e-5)
    if decay in ("head", "channel"):
        with torch.no_grad():
            assert_equal(expected[:2], list(exact.run(backend="reference")), 1e-10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 8, 2, 4)}, r"q \(2, 8, 2, 4\) and k \(2, 8, 2, 5\)"),
        ({"v": torch.zeros(2, 8, 3, 3), "beta": torch.zeros(2, 8, 3)}, "HV a multiple of 2"),
        ({"beta": torch.zeros(2, 8, 2)}, r"beta \(2, 8, 2\) must be \(B, T, HV\) = \(2, 8, 4\)"),
        ({"log_decay": torch.zeros(2, 8, 2)}, r"log_decay \(2, 8, 2\) must be None"),
        ({"state": torch.zeros(2, 4, 3, 5)}, r"state \(2, 4, 3, 5\) must be \(2, 4, 5, 3\)"),
    ],
)
def test_wrong_shapes(change: dict[str, torch.Tensor], message: str) -> None:
    given = Inputs(**{**vars(inputs(8, delta=True)), **change})
    with pytest.raises(OptionError, match=message):
        given.run()


def test_wrong_options() -> None:
    with pytest.raises(OptionError, match="chunk_size=0"):
        inputs(8).run(chunk_size=0)
    with pytest.raises(OptionError, match="B == 1"):
        inputs(8).run(cu_seqlens=torch.tensor([0, 8]))
    for wrong in ([0, 7], [1, 8], [0, 4, 4, 8]):
        with pytest.raises(OptionError, match="rise strictly from 0 to T = 8"):
            inputs(8, B=1, states=None).run(cu_seqlens=torch.tensor(wrong))
    with pytest.raises(OptionError, match=r"log_a \(1, 2, 3\)"):
        ops.linear_scan(torch.zeros(1, 2, 3), torch.zeros(1, 3, 3))

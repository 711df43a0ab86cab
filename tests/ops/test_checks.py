"""Empty sizes have empty results, wrong arguments an error that names them, any chunk size the same numbers."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ops.cases import inputs
from plait import ops
from plait.errors import BackendUnavailable, OptionError
from plait.ops import norm
from plait.ops.native import absent, softmax

BACKENDS = [
    "reference",
    "torch",
    pytest.param("native", marks=pytest.mark.skipif(absent() is not None, reason="not compiled")),
]
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0)])
def test_empty_scans(shape: tuple[int, int, int], backend: str) -> None:
    h, last = ops.linear_scan(torch.zeros(shape), torch.zeros(shape), backend=backend)
    assert h.shape == shape
    assert torch.equal(last, torch.zeros(shape[0], shape[2]))
    state = torch.randn(shape[0], shape[2], requires_grad=True)
    _, last = ops.linear_scan(torch.zeros(shape), torch.zeros(shape), state=state, backend=backend)
    assert torch.equal(last, state)
    assert last is not state
    if last.requires_grad:
        last.sum().backward()
        assert torch.equal(state.grad, torch.ones_like(state))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("sizes", [{"B": 0}, {"T": 0}, {"H": 0, "HV": 0}, {"HV": 0}, {"K": 0}, {"V": 0}], ids=str)
def test_empty_recurrences(sizes: dict[str, int], delta: bool, backend: str) -> None:
    sizes = {"T": 3, **sizes}
    given = inputs(**sizes, delta=delta, dtype=torch.float32)
    o, state = given.run(backend=backend)
    assert o.shape == given.v.shape
    assert o.abs().sum() == 0
    assert state.shape == given.state.shape
    if sizes["T"] == 0:
        assert torch.equal(state, given.state)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_packed_row_without_documents(backend: str) -> None:
    none = torch.tensor([0])
    u = torch.zeros(1, 0, 3)
    assert ops.linear_scan(u, u, cu_seqlens=none, backend=backend)[1].shape == (0, 3)
    q = torch.zeros(1, 0, 2, 3)
    assert ops.linear_attention(q, q, q, cu_seqlens=none, backend=backend)[1].shape == (0, 2, 3, 3)
    with ops.backend(backend):
        y, tail = ops.causal_convolution(u, torch.zeros(3, 4), cu_seqlens=none)
    assert (y.shape, tail.shape) == ((1, 0, 3), (0, 3, 3))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0)])
def test_empty_convolutions(shape: tuple[int, int, int], backend: str) -> None:
    tail = torch.randn(shape[0], 3, shape[2])
    with ops.backend(backend):
        y, after = ops.causal_convolution(torch.zeros(shape), torch.zeros(shape[2], 4), tail=tail)
    assert y.shape == shape
    assert after.shape == tail.shape
    if shape[1] == 0:
        assert torch.equal(after, tail)


@pytest.mark.skipif(absent() is not None, reason="not compiled")
def test_keys_receive_weights_where_values_have_no_channels() -> None:
    q, k = torch.randn(1, 2, 5, 4), torch.randn(1, 1, 5, 4)
    o, sums = softmax.attend(q, k, torch.zeros(1, 1, 5, 0), scale=0.5, first=0, sums=True)
    assert o.shape == (1, 2, 5, 0)
    scores = (0.5 * q @ k.mT).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(sums, scores.softmax(-1).sum(2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("delta", [False, True])
def test_any_chunk_size_gives_the_same_numbers(delta: bool, backend: str) -> None:
    given = inputs(70, delta=delta, decay="channel", dtype=torch.float32)
    expected, state = given.run(backend="reference")
    for size in (1, 3, 1000, 100_000, 2**31, 2**62, 2**63, 10**40):
        o, last = given.run(backend=backend, chunk_size=size)
        torch.testing.assert_close(o, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(last, state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_output_has_the_dtype_of_the_values(dtype: torch.dtype, backend: str) -> None:
    if backend == "native" and dtype == torch.float64:
        pytest.skip("refused, as test_native shows")
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for length in (1, 5):
        for delta in (False, True):
            given = inputs(length, delta=delta, dtype=dtype)
            o, state = given.run(backend=backend)
            assert (o.dtype, state.dtype) == (dtype, wide)
            given.leaves().run(backend=backend)[0].sum().backward()
        h, last = ops.linear_scan(-given.v[..., 0].abs(), given.v[..., 1], backend=backend)
        assert (h.dtype, last.dtype) == (dtype, wide)
        with ops.backend(backend):
            y, tail = ops.causal_convolution(h, torch.ones(h.shape[2], 4, dtype=dtype))
        assert y.dtype == tail.dtype == dtype


WRONG = {
    "bias": lambda: ops.causal_convolution(torch.zeros(1, 5, 16), torch.zeros(16, 4), bias=torch.zeros(3)),
    "tap": lambda: ops.causal_convolution(torch.zeros(1, 5, 16), torch.zeros(16, 0)),
    "padding": lambda: ops.causal_convolution(torch.zeros(1, 5, 2), torch.zeros(2, 4), padding=torch.tensor([6])),
    "cu_seqlens": lambda: ops.causal_convolution(
        torch.zeros(1, 5, 2), torch.zeros(2, 4), cu_seqlens=torch.tensor([0, 99])
    ),
    "cu_seqlens must be borders": lambda: inputs(4, B=1, states=None).run(cu_seqlens=torch.tensor([0.0, 4.0])),
    "chunk_size=2.5": lambda: inputs(4).run(chunk_size=2.5),
    "scale=nan": lambda: inputs(4).run(scale=float("nan")),
    "scale=1000": lambda: inputs(4).run(scale=10**400),
    "multiple of 0": lambda: inputs(4, H=0).run(),
    "u must be a dense tensor.*complex64": lambda: ops.linear_scan(
        torch.zeros(1, 2, 3), torch.zeros(1, 2, 3, dtype=torch.complex64)
    ),
    "q must be a dense tensor.*int64": lambda: ops.linear_attention(*[torch.zeros(1, 2, 3, 4).long()] * 3),
    "beta must be a dense tensor.*NoneType": lambda: ops.delta_rule(*[torch.zeros(1, 2, 3, 4)] * 3, None),
    "on cpu and state on meta": lambda: ops.linear_scan(
        torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), state=torch.zeros(1, 3, device="meta")
    ),
    "weight": lambda: norm.rms_norm(torch.zeros(2, 8), torch.zeros(1), 1e-6),
    "gate": lambda: norm.gated_rms_norm(torch.zeros(2, 8), torch.zeros(8), torch.zeros(8), 1e-6),
    "x must be a dense tensor.*complex64": lambda: norm.l2_norm(torch.zeros(2, 8, dtype=torch.complex64)),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message: str) -> None:
    with pytest.raises(OptionError, match=message):
        WRONG[message]()


@pytest.mark.skipif(absent() is not None, reason="the kernels are not compiled")
class TestSoftmax:
    def run(self, **changes: object) -> torch.Tensor:
        x = torch.ones(1, 2, 4, 8)
        index = torch.zeros(1, 2, 1, 1, dtype=torch.int64)
        arguments = {"index": index, "scale": 1.0, "first": 0, **changes}
        return softmax.attend(x, x[:, :1], x[:, :1], **arguments)[0]

    @pytest.mark.parametrize("page", [-1, 4, 2**31, 2**62])
    def test_pages_without_keys_are_refused(self, page: int) -> None:
        with pytest.raises(OptionError, match="index names pages"):
            self.run(index=torch.full((1, 2, 1, 1), page))

    def test_an_empty_list_means_no_key_and_not_every_key(self) -> None:
        assert self.run(index=torch.zeros(1, 2, 1, 0, dtype=torch.int64)).abs().max() == 0

    def test_a_query_sees_nothing_of_keys_behind_it(self) -> None:
        assert self.run(index=torch.full((1, 2, 1, 1), 3))[:, :, :3].abs().max() == 0

    def test_counts_that_do_not_fit_are_refused(self) -> None:
        for counts in (torch.full((1, 2, 1), 2), torch.full((1, 2, 1), -1), torch.ones(1, 2, 2, dtype=torch.int64)):
            with pytest.raises(OptionError, match="counts"):
                self.run(counts=counts)
        with pytest.raises(OptionError, match="add up to 3"):
            self.run(index=torch.zeros(2, dtype=torch.int64), counts=torch.tensor([[[1], [2]]]))


IN_A_PROCESS = {
    "default dtype": "torch.set_default_dtype(torch.bfloat16)\n"
    "for _ in range(20): o = ops.linear_attention(q, q, q)[0]\nassert o.dtype == torch.float32",
    "default device": "torch.set_default_device('meta')\nassert ops.linear_attention(q, q, q)[0].is_cpu",
    "fake state": "from torch._subclasses.fake_tensor import FakeTensorMode\n"
    "with FakeTensorMode():\n"
    "    q = torch.rand(1, 1, 2, 4); s = torch.zeros(1, 2, 4, 4)\n"
    "    assert ops.linear_attention(q, q, q, state=s, overwrite_state=True)[1].shape == s.shape",
    "tensor without memory": "from torch.testing._internal.two_tensor import TwoTensor\n"
    "o = ops.linear_attention(TwoTensor(q, q), q, q)[0]\n"
    "torch.testing.assert_close(o.a, ops.linear_attention(q, q, q)[0])",
}


@pytest.mark.parametrize("case", IN_A_PROCESS)
def test_no_foreign_memory_is_touched(case: str) -> None:
    """Each of these once ended the process."""
    source = "import torch\nfrom plait import ops\nq = torch.rand(4, 1, 32, 64)\n" + IN_A_PROCESS[case]
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", source], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_transforms_of_pytorch_are_served_by_the_reference_alone() -> None:
    log_a, u = -torch.rand(2, 9, 5), torch.rand(2, 9, 5)

    def loss(u: torch.Tensor, backend: str = "auto") -> torch.Tensor:
        return ops.linear_scan(log_a, u, backend=backend)[0].square().sum()

    for function in (torch.func.grad(loss), lambda u: torch.func.jvp(loss, (u,), (u,))):
        with pytest.raises(BackendUnavailable, match="Fix: ask for backend 'reference'"):
            function(u)
    leaf = u.clone().requires_grad_()
    loss(leaf).backward()
    torch.testing.assert_close(torch.func.grad(loss)(u, backend="reference"), leaf.grad)


def test_a_conjugates_imaginary_part_keeps_its_sign() -> None:
    values = torch.rand(2, 3, 2, 1)
    lazy = torch.complex(torch.zeros_like(values), -values).conj().imag
    assert lazy.is_neg()
    for length in (1, 3):
        x, y = lazy[:, :length], values[:, :length]
        torch.testing.assert_close(ops.linear_attention(x, x, x), ops.linear_attention(y, y, y))

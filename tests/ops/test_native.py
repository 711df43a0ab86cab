"""The compiled kernels equal the reference in fp64: any size, decay, layout, thread and instruction set."""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ops.cases import DECAYS, LENGTHS, Inputs, assert_equal, inputs, with_gradients
from plait import ops
from plait.errors import BackendUnavailable
from plait.ops import dispatch, native
from plait.ops.native import build, library

# With CI set a machine without the kernels fails here instead of skipping what guards them.
pytestmark = pytest.mark.skipif(
    native.absent() is not None and "CI" not in os.environ, reason=f"native: {native.absent()}"
)

WIDTHS = [(5, 3), (16, 16), (17, 40), (64, 48)]


def single(given: Inputs) -> Inputs:
    return Inputs(*(None if x is None else x.float() for x in vars(given).values()))


def exact(given: Inputs, **options: object) -> list[Tensor]:
    """The reference's answer in fp64 to the same fp32 numbers, cast to fp32."""
    doubled = Inputs(*(None if x is None else x.double() for x in vars(given).values()))
    return [x.float() for x in with_gradients(doubled, backend="reference", **options)]


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("K", "V"), WIDTHS, ids=lambda width: str(width))
def test_equals_reference(K: int, V: int, decay: str, delta: bool) -> None:
    for T, states in itertools.product(LENGTHS, (-1, None)):
        given = single(inputs(T, K=K, V=V, decay=decay, delta=delta, states=states))
        expected = exact(given)
        for chunk in (16, 64):
            found = with_gradients(given, backend="native", chunk_size=chunk)
            if decay == "constant":  # a sum over all tokens of terms that nearly cancel; the fp32 loop is as far off
                index = 6 if delta else 5
                assert_equal([found.pop(index)], [expected[index]], 1e-4, (T, states, chunk))
                assert_equal(found, [x for i, x in enumerate(expected) if i != index], 1e-5, (T, states, chunk))
            else:
                assert_equal(found, expected, 1e-5, (T, states, chunk))


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("decay", DECAYS)
def test_packed_documents_equal_separate_runs(decay: str, delta: bool) -> None:
    borders = torch.tensor([0, 1, 2, 18, 50, 51, 130])
    for states in (6, None):
        given = single(inputs(130, B=1, decay=decay, delta=delta, states=states))
        expected = exact(given, cu_seqlens=borders)
        assert_equal(with_gradients(given, backend="native", cu_seqlens=borders), expected, 1e-5, states)


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("decay", DECAYS)
def test_any_split_equals_one_pass(decay: str, delta: bool) -> None:
    given = single(inputs(70, decay=decay, delta=delta))
    whole = list(given.run(backend="native"))
    for borders in ([0, 1, 70], [0, 16, 70], [0, 33, 34, 70], list(range(71))):
        pieces, state = [], given.state
        for first, last in itertools.pairwise(borders):
            o, state = given.part(first, last, state).run(backend="native")
            pieces.append(o)
        assert_equal([torch.cat(pieces, 1), state], whole, 1e-5, borders)


@pytest.mark.parametrize("delta", [False, True])
def test_a_state_is_overwritten_only_by_leave_of_its_owner(delta: bool) -> None:
    given = single(inputs(1, K=16, V=40, delta=delta))
    kept = given.state.clone()
    expected, after = given.run(backend="native")
    assert torch.equal(given.state, kept)
    assert after.data_ptr() != given.state.data_ptr()
    for backend in ("reference", "torch"):  # leave need not be taken
        given.run(backend=backend, overwrite_state=True)
        assert torch.equal(given.state, kept)
    o, same = given.run(backend="native", overwrite_state=True)
    assert same is given.state
    assert torch.equal(o, expected)
    assert torch.equal(same, after)


def test_a_state_that_autograd_may_keep_or_that_is_laid_out_otherwise_is_never_overwritten() -> None:
    given = single(inputs(1, delta=True))
    expected = given.run(backend="native")
    for state in (given.state.clone().requires_grad_(), given.state.mT.contiguous().mT, given.state.double().float()):
        allowed = state.is_contiguous() and not state.requires_grad
        kept = state.detach().clone()
        given.state = state
        with torch.no_grad():
            found = given.run(backend="native", overwrite_state=True)
        assert_equal(list(found), list(expected), 1e-6)
        assert torch.equal(state, kept) != allowed
    leaves = single(inputs(1, delta=True)).leaves()
    kept = leaves.state.detach().clone()
    leaves.run(backend="native", overwrite_state=True)[0].sum().backward()
    assert torch.equal(leaves.state, kept)


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="other processors are not slowed down by them"
)
def test_numbers_below_1e_38_count_as_zero_inside_and_as_before_outside() -> None:
    """A fading state full of them would cost ten times the time."""
    one = single(inputs(1, decay="none"))
    one.state = torch.full_like(one.state, 1e-39)
    one.k = torch.zeros_like(one.k)
    assert one.run(backend="native")[1].abs().max() == 0
    assert torch.tensor([1e-38]) * 0.1 > 0


@pytest.mark.parametrize("decay", ["head", "channel"])
def test_layouts(decay: str) -> None:
    """Strided, flipped and broadcast inputs, and a gradient that arrives strided."""
    given = single(inputs(33, K=8, V=8, decay=decay, delta=True))
    expected = with_gradients(given, backend="native")
    strided = Inputs(*(None if x is None else x.mT.contiguous().mT for x in vars(given).values()))
    assert not strided.q.is_contiguous()
    assert_equal(with_gradients(strided, backend="native"), expected, 0.0)
    given.v = given.v[:1].expand(2, -1, -1, -1)
    assert_equal(list(given.run(backend="native")), exact(given)[:2], 1e-5)
    leaves = given.leaves()
    o, _ = leaves.run(backend="native")
    o.transpose(1, 3).contiguous().square().sum().backward()
    assert leaves.q.grad is not None
    same = given.leaves()
    same.run(backend="reference")[0].square().sum().backward()
    assert_equal([leaves.q.grad], [same.q.grad], 1e-5)


@pytest.mark.parametrize("delta", [False, True])
def test_half_precision_inputs_are_computed_in_fp32(delta: bool) -> None:
    for T in (1, 70):
        half = Inputs(
            *(None if x is None else x.bfloat16() for x in vars(inputs(T, decay="channel", delta=delta)).values())
        )
        same = single(half)
        o, state = half.run(backend="native")
        expected, expected_state = same.run(backend="native")
        assert (o.dtype, state.dtype) == (torch.bfloat16, torch.float32)
        assert torch.equal(o, expected.bfloat16())
        assert torch.equal(state, expected_state)
        assert all(x.isfinite().all() for x in with_gradients(half, backend="native"))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_equal(list(same.run(backend="native")), [expected, expected_state], 0.0)


def test_only_the_output_or_only_the_state_is_used() -> None:
    given = single(inputs(40, decay="channel", delta=True))
    for index in (0, 1):
        grads = []
        for backend in ("reference", "native"):
            leaves = given.leaves()
            loss = leaves.run(backend=backend)[index].square().sum()
            grads.append(list(torch.autograd.grad(loss, leaves.tensors(), materialize_grads=True)))
        assert_equal(grads[1], grads[0], 1e-5, index)


@pytest.mark.parametrize("decay", ["head", "channel"])
def test_a_decay_that_forgets_everything_has_no_gradient(decay: str) -> None:
    """Exactly none, though it is found as a difference of large terms."""
    given = single(inputs(40, decay=decay, delta=True))
    given.log_decay[:, 23] = -torch.inf
    leaves = given.leaves()
    leaves.run(backend="native")[0].square().sum().backward()
    assert leaves.log_decay.grad[:, 23].abs().max() == 0
    assert leaves.log_decay.grad[:, 22].abs().min() > 0


def test_only_states_are_kept_for_backward() -> None:
    T, heads, width = 1024, 2, 8
    for decay, delta in itertools.product(("none", "head", "channel"), (False, True)):
        leaves = single(inputs(T, B=1, H=heads, HV=heads, K=width, V=width, decay=decay, delta=delta)).leaves()
        known = {x.untyped_storage().data_ptr() for x in leaves.tensors()}
        kept: dict[int, int] = {}

        def pack(x: Tensor, known: set[int] = known, kept: dict[int, int] = kept) -> Tensor:
            storage = x.untyped_storage()
            if storage.data_ptr() not in known:
                kept[storage.data_ptr()] = storage.nbytes() // 4
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            leaves.run(backend="native", chunk_size=64)
        assert sum(kept.values()) == (T // 64 + 1) * heads * width * width


def test_gradient_of_a_gradient_is_refused() -> None:
    leaves = single(inputs(20, delta=True, decay="channel")).leaves()
    o, _ = leaves.run(backend="native")
    (first,) = torch.autograd.grad(o.square().sum(), leaves.q, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivative only"):
        first.sum().backward()


def test_eager_calls_do_not_import_the_compiler() -> None:
    source = (
        "import sys, torch\nfrom plait import ops\n"
        "u = torch.rand(1, 9, 5, requires_grad=True)\n"
        "ops.linear_scan(-u.abs(), u, backend='native')[0].sum().backward()\n"
        "print('torch._dynamo' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_threads_share_the_work_and_change_nothing() -> None:
    given = single(inputs(130, B=3, K=16, V=16, delta=True))
    expected = with_gradients(given, backend="native")
    try:
        torch.set_num_threads(2)
        assert_equal(with_gradients(given, backend="native"), expected, 0.0)
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _: with_gradients(given, backend="native"), range(8)):
                assert_equal(found, expected, 0.0)
        one = single(inputs(1, K=192, V=200, delta=True))  # large enough for two threads
        scan = [-torch.rand(1, 130, 2100), torch.rand(1, 130, 2100), torch.rand(1, 2100)]
        two_threads = [*one.run(backend="native"), *scan_with_gradients(scan, backend="native")]
        torch.set_num_threads(1)
        assert_equal(two_threads, [*one.run(backend="native"), *scan_with_gradients(scan, backend="native")], 0.0)
    finally:
        torch.set_num_threads(1)


def _in_child(given: Inputs, results: multiprocessing.SimpleQueue) -> None:
    results.put([x.tolist() for x in given.run(backend="native")])


@pytest.mark.skipif(sys.platform != "linux", reason="fork is safe to test on Linux only")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_fork() -> None:
    """OpenMP's threads do not survive a fork; the kernels start their own there instead of waiting for ever."""
    given = single(inputs(130, B=3, delta=True))
    try:
        torch.set_num_threads(2)
        expected = [x.tolist() for x in given.run(backend="native")]
        context = multiprocessing.get_context("fork")
        results = context.SimpleQueue()
        child = context.Process(target=_in_child, args=(given, results))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        assert results.get() == expected
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("level", build.levels())
def test_every_instruction_set(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fitting = build.levels()
    if fitting.index(level) < fitting.index(torch.backends.cpu.get_cpu_capability().upper()):
        pytest.skip(f"this processor has no {level}")
    kernels = ctypes.CDLL(str(build.library(level)))
    monkeypatch.setattr(library, "load", lambda: (kernels, level))
    for decay, delta, (K, V) in itertools.product(("head", "channel"), (False, True), ((5, 3), (40, 24))):
        given = single(inputs(70, K=K, V=V, decay=decay, delta=delta))
        assert_equal(with_gradients(given, backend="native"), exact(given), 1e-5, (decay, delta, K))


def scan_with_gradients(given: list[Tensor], **options: object) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in given]
    h, last = ops.linear_scan(leaves[0], leaves[1], state=leaves[2], **options)
    loss = (h * torch.arange(h.numel()).view_as(h).cos()).sum() + last.square().sum()
    return [h.detach(), last.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("D", [1, 5, 16, 33, 600, 2100])
def test_scan(D: int, generator: torch.Generator) -> None:
    for T, borders in ((1, None), (2, None), (130, None), (130, [0, 1, 2, 50, 130])):
        batch, states = (2, 2) if borders is None else (1, 4)
        options = {} if borders is None else {"cu_seqlens": torch.tensor(borders)}
        given = [torch.randn(s, generator=generator) for s in ((batch, T, D), (batch, T, D), (states, D))]
        given[0] = -given[0].abs()
        given[0][..., T // 2 :, 0] = -torch.inf
        expected = scan_with_gradients([x.double() for x in given], backend="reference", **options)
        found = scan_with_gradients(given, backend="native", **options)
        assert_equal(found, [x.float() for x in expected], 1e-5, (T, borders))


@pytest.mark.parametrize("C", [1, 6, 16, 530])
@pytest.mark.parametrize("kernel", [1, 2, 4])
def test_depthwise_convolution(kernel: int, C: int, generator: torch.Generator) -> None:
    for T, with_bias in ((1, True), (9, False), (40, True)):
        shapes = ((2, T + kernel - 1, C), (C, kernel), (C,))
        x, weight, bias = (torch.randn(s, generator=generator).requires_grad_() for s in shapes)
        leaves = [x, weight, *([bias] if with_bias else [])]
        y = native.depthwise(x, weight, bias if with_bias else None)
        expected = F.conv1d(x.mT, weight[:, None], bias if with_bias else None, groups=C).mT
        cotangent = torch.randn(y.shape, generator=generator)
        found = torch.autograd.grad((y * cotangent).sum(), leaves)
        wanted = torch.autograd.grad((expected * cotangent).sum(), leaves)
        assert_equal([y, *found], [expected, *wanted], 1e-5, (T, with_bias))


def test_operators_keep_the_rules_of_torch_library() -> None:
    """Schemas, shapes for tracing and autograd registration, as torch's own checker sees them."""
    given = single(inputs(20, K=8, V=8, decay="channel", delta=True)).leaves()
    arguments = (*vars(given).values(), None, 0.5, 16, True)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.plait.attention.default, arguments, test_utils=checks)
    log_a, u = -torch.rand(2, 9, 5), torch.rand(2, 9, 5)
    torch.library.opcheck(torch.ops.plait.scan.default, (log_a, u, None, None), test_utils=checks)
    x, weight = torch.rand(2, 9, 5), torch.rand(4, 5)
    torch.library.opcheck(torch.ops.plait.depthwise.default, (x, weight, None), test_utils=checks)
    one = single(inputs(1, delta=True))
    step = (one.q, one.k, one.v, one.beta, one.log_decay, 1.0, one.state)
    torch.library.opcheck(torch.ops.plait.step.default, step, test_utils=checks)


def test_what_it_cannot_take_is_said() -> None:
    assert ops.choose("cpu")[0] == "native"
    with pytest.raises(BackendUnavailable, match="fp32 and the tensors are fp64"):
        inputs(4).run(backend="native")
    assert inputs(4).run()[1].dtype == torch.float64  # auto takes torch instead


def test_absent_kernels_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.status, "load", lambda: (None, "its kernels were not compiled"))
    monkeypatch.setattr(native, "absent", native.status.absent)
    status = dispatch.status("native")
    assert not status.available
    assert "python -m plait.ops.native.build" in status.fix
    assert ops.choose("cpu")[0] == "torch"
    with pytest.raises(BackendUnavailable, match="not compiled"):
        single(inputs(4)).run(backend="native")


def test_a_compiler_that_is_missing_or_fails_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for path in build.FOLDER.glob("*.[ch]"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("PLAIT_KERNELS", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    assert "no C compiler" in str(build.build())
    monkeypatch.setenv("CC", sys.executable)
    assert "failed for" in str(build.build())
    monkeypatch.setenv("CC", str(tmp_path / "absent"))
    assert "could not be run" in str(build.build())
    assert not list(tmp_path.glob("kernels-*"))


def test_changed_sources_make_the_old_file_stale(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PLAIT_KERNELS", raising=False)
    (tmp_path / "rows.c").write_text("int x;")
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    before = build.library("DEFAULT")
    (tmp_path / "rows.c").write_text("int y;")
    assert build.library("DEFAULT") != before
    before.touch()
    found, reason = library.load.__wrapped__()
    assert found is None
    assert "other sources" in reason

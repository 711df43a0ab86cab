"""Which backend runs, by whose choice, and what is said when one cannot."""

from __future__ import annotations

import pytest
import torch

from ops.cases import inputs
from plait import ops
from plait.errors import BackendUnavailable, OptionError
from plait.ops import chunkwise, dispatch, native, reference


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the backends that ran, in order."""
    names: list[str] = []
    for name, module in (("reference", reference), ("torch", chunkwise)):
        for function in ("attend", "linear_scan"):

            def spy(*args: object, name: str = name, call: object = getattr(module, function)) -> object:
                names.append(name)
                return call(*args)

            monkeypatch.setattr(module, function, spy)
    return names


def call_all(**options: str) -> None:
    inputs(4).run(**options)
    inputs(4, delta=True).run(**options)
    ops.linear_scan(torch.zeros(1, 4, 2), torch.ones(1, 4, 2), **options)


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where plait was installed without a C compiler."""
    monkeypatch.setattr(native, "absent", lambda: "its kernels were not compiled")


def test_auto_is_torch_on_cpu_without_kernels(ran: list[str], no_kernels: None) -> None:
    assert ops.choose("cpu")[0] == "torch"
    assert "not compiled" in ops.choose("cpu")[1]
    call_all()
    assert ran == ["torch"] * 3


def test_by_name_and_by_context(ran: list[str], no_kernels: None) -> None:
    call_all(backend="reference")
    with ops.backend("reference"):
        assert ops.choose("cpu") == ("reference", "plait.ops.backend('reference') is active")
        call_all()
        call_all(backend="torch")  # a name in the call is stronger
        with ops.backend("auto"):
            call_all()
    call_all()
    assert ran == ["reference"] * 6 + ["torch"] * 9


def test_context_leaves_no_trace_after_an_exception() -> None:
    before = ops.choose("cpu")
    with pytest.raises(RuntimeError, match="inside"), ops.backend("reference"):
        raise RuntimeError("inside")
    assert ops.choose("cpu") == before


def test_unknown_backend_names_the_nearest() -> None:
    with pytest.raises(OptionError, match=r"no backend named 'torhc'\. Did you mean 'torch'"):
        inputs(4).run(backend="torhc")
    with pytest.raises(OptionError, match="no backend named 'triton'"), ops.backend("triton"):
        pass


def test_every_backend_says_why() -> None:
    listed = ops.backends()
    assert [status.name for status in listed] == ["reference", "torch", "native", "fla"]
    assert all(status.reason and (status.available or status.fix) for status in listed)


def test_fla_without_cuda_or_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "CUDA" in ops.choose("cuda")[1]
    assert ops.choose("cuda")[0] == "torch"
    with pytest.raises(BackendUnavailable, match="need a CUDA device"):
        inputs(4).run(backend="fla")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"not installed.*pip install"), ops.backend("fla"):
        pass
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: object())
    assert ops.choose("cuda")[0] == "fla"
    assert ops.choose("cpu")[0] != "fla"
    with pytest.raises(BackendUnavailable, match="tensors are on cpu"):
        inputs(4).run(backend="fla")

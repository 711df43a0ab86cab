"""When the fla backend steps aside; the kernels themselves are checked in tests/gpu."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from plait.errors import BackendUnavailable
from plait.ops import dispatch, fla, recurrences


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def with_triton(version: str, capability: int = 9, tilelang: bool = False) -> None:
        fla._wrong_on_hopper.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (capability, 0))
        monkeypatch.setattr(fla, "version", lambda name: version)
        monkeypatch.setattr(fla, "find_spec", lambda name: object() if tilelang else None)

    yield with_triton
    fla._wrong_on_hopper.cache_clear()


def call(decay: int | None, delta: bool = False, dtype: torch.dtype = torch.bfloat16, grad: bool = True) -> str | None:
    x = torch.zeros(1, 4, 2, 8, dtype=dtype, requires_grad=grad)
    shapes = {None: None, 1: (2,), 3: (1, 4, 2), 4: (1, 4, 2, 8)}
    shape = shapes[decay]
    log_decay = None if shape is None else torch.zeros(shape)
    return fla.refuses_gradient(x, x, x, torch.zeros(1, 4, 2) if delta else None, log_decay, None)


@pytest.mark.parametrize("version", ["3.4.0", "3.6.0", "3.7.0"])
def test_the_gated_backward_is_refused_on_hopper(version: str, hopper: Any) -> None:
    hopper(version)
    assert "triton>=3.7.1" in (call(3) or "")
    assert call(3, delta=True)
    assert call(None, delta=True, dtype=torch.float32)  # runs the gated kernel with a decay of one
    assert call(None, delta=True) is None
    assert call(1) is None  # a fixed decay has a kernel of its own
    assert call(4) is None
    assert call(4, delta=True) is None
    assert call(3, grad=False) is None
    with torch.no_grad():
        assert call(3) is None


@pytest.mark.parametrize(
    ("version", "capability", "tilelang"),
    [("3.7.1", 9, False), ("3.3.1", 9, False), ("3.6.0", 8, False), ("3.6.0", 9, True)],
)
def test_elsewhere_it_runs(version: str, capability: int, tilelang: bool, hopper: Any) -> None:
    hopper(version, capability, tilelang)
    assert call(3) is None


def test_auto_takes_torch_and_a_named_backend_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "resolve", lambda name, device: "fla")
    monkeypatch.setattr(fla, "refuses", lambda first, width: None)
    monkeypatch.setattr(fla, "refuses_gradient", lambda *tensors: "it is wrong here")
    q, k, v = torch.randn(3, 1, 8, 2, 4).unbind()
    decay = -torch.rand(1, 8, 2)
    o, _ = recurrences.linear_attention(q, k, v, log_decay=decay)
    expected, _ = recurrences.linear_attention(q.double(), k.double(), v.double(), log_decay=decay.double())
    torch.testing.assert_close(o.double(), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(BackendUnavailable, match="it is wrong here"):
        recurrences.linear_attention(q, k, v, log_decay=decay, backend="fla")

"""Long sequences keep inputs and states for backward, not the temporaries of their chunks."""

from __future__ import annotations

import pytest
import torch

from ops.cases import inputs
from plait.ops import chunkwise


def kept_for_backward(T: int, decay: str, delta: bool) -> tuple[int, int]:
    """Elements that autograd keeps beyond the inputs, and tokens."""
    leaves = inputs(T, B=1, H=2, HV=2, K=8, V=8, decay=decay, delta=delta, dtype=torch.float32).leaves()
    known = {x.untyped_storage().data_ptr() for x in leaves.tensors()}
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes() // 4
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        o, state = leaves.run(backend="torch")
    del o, state
    return sum(kept.values()), T


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("decay", ["none", "head", "channel"])
def test_chunk_temporaries_are_not_kept(decay: str, delta: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    T, heads, width = 4096, 2, 8
    in_segments, _ = kept_for_backward(T, decay, delta)
    states = T // chunkwise.SEGMENT * heads * width * width
    scaled_queries = T * heads * width
    assert in_segments <= scaled_queries + states
    monkeypatch.setattr(chunkwise, "SEGMENT", T)
    at_once, _ = kept_for_backward(T, decay, delta)
    assert at_once > 5 * in_segments  # what plain autograd would hold


def test_one_segment_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither forward nor backward ever runs more than a segment's tokens at once."""
    lengths = []
    original = chunkwise._run

    def spy(chunk: int, parts: list[torch.Tensor], *rest: object) -> object:
        lengths.append(parts[2].shape[1])
        return original(chunk, parts, *rest)

    monkeypatch.setattr(chunkwise, "_run", spy)
    monkeypatch.setattr(chunkwise, "SEGMENT", 64)
    leaves = inputs(300, decay="head", delta=True).leaves()
    o, _ = leaves.run(chunk_size=16)
    assert lengths == [64, 64, 64, 64, 44]
    o.sum().backward()
    assert lengths[5:] == [44, 64, 64, 64, 64]


def test_gradient_of_a_gradient_is_refused() -> None:
    leaves = inputs(20, delta=True, decay="channel").leaves()
    o, _ = leaves.run()
    (first,) = torch.autograd.grad(o.square().sum(), leaves.q, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivative only"):
        first.sum().backward()

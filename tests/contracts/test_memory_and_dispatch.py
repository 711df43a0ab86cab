"""A training step's memory and its operations grow with the text: no matrix of all pairs, no loop over tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from contracts.checks import small_case, tiny_model, tokens
from plait import catalog
from plait.mixers import Context
from plait.ops import native

LENGTH = 512
MIXERS = catalog.names("mixer", bidirectional=False)
#: One that attends and one that folds the past into a state, for planting faults.
SOME = [catalog.names("mixer", full=True)[0], catalog.names("mixer", recurrent=True)[-1]]

compiled = pytest.mark.skipif(native.absent() is not None, reason="PyTorch's code has a loop over chunks of 64 tokens")


@dataclass
class Step:
    """What one training step needs.

    Args:
        saved: bytes that the forward keeps for the backward.
        largest: bytes of the largest tensor that an operation makes.
        operations: calls of PyTorch's operations.
    """

    saved: int = 0
    largest: int = 0
    operations: int = 0


class Watch(TorchDispatchMode):
    """Sees every operation, those of the backward too."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.step.operations += 1
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor):
                self.step.largest = max(self.step.largest, x.untyped_storage().nbytes())
        return result


def training_step(mixer: str, length: int, padded: bool = False) -> Step:
    """One step of a tiny model of this mixer, at the settings at which it acts on few tokens."""
    model = tiny_model(small_case(mixer), dtype=torch.float32).train()
    ids = tokens(2, length)
    mask = torch.ones_like(ids)
    if padded:
        mask[1, : length // 5] = 0
    step, kept = Step(), {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return x

    with Watch(step), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model(ids, attention_mask=mask if padded else None, labels=ids, use_cache=False).loss.backward()
    step.saved = sum(kept.values())
    return step


def check_memory(mixer: str, padded: bool = False) -> None:
    """At twice the tokens at most 2.3 times the memory; no tensor has an entry for every pair."""
    short, long = (training_step(mixer, length, padded) for length in (LENGTH, 2 * LENGTH))
    assert long.saved <= 2.3 * short.saved, f"{short.saved} bytes are kept, then {long.saved}"
    assert long.largest <= 2.3 * short.largest, f"the largest tensor has {short.largest} bytes, then {long.largest}"


def check_operations(mixer: str) -> None:
    """Fewer operations come with more text than a loop over its tokens would bring, forward and backward."""
    short, long = (training_step(mixer, length) for length in (LENGTH, 2 * LENGTH))
    added = (long.operations - short.operations) / LENGTH
    assert added < 0.5, f"{added:.2f} operations a token"


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("mixer", MIXERS)
def test_memory_grows_with_the_text(mixer: str, padded: bool) -> None:
    check_memory(mixer, padded)


@compiled
@pytest.mark.parametrize("mixer", MIXERS)
def test_operations_do_not_grow_with_tokens(mixer: str) -> None:
    check_operations(mixer)


def spoil(mixer: str, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Tensor], Tensor]) -> None:
    """Let ``fault`` change what the mixer returns ``(B, T, d)``."""
    kind = catalog.get(mixer).load()
    sound = kind.forward

    def forward(self: torch.nn.Module, x: Tensor, context: Context) -> Tensor:
        return fault(sound(self, x, context))

    monkeypatch.setattr(kind, "forward", forward)


def dense_mask(y: Tensor) -> Tensor:
    length = y.shape[1]
    return y + 0 * (torch.ones(length, length).tril() @ y)


def loop_over_tokens(y: Tensor) -> Tensor:
    return torch.stack([y[:, t] for t in range(y.shape[1])], dim=1)


@pytest.mark.parametrize("mixer", SOME)
def test_a_dense_mask_is_noticed(mixer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(mixer, monkeypatch, dense_mask)
    with pytest.raises(AssertionError, match=r"bytes"):
        check_memory(mixer)


@compiled
@pytest.mark.parametrize("mixer", SOME)
def test_a_loop_over_tokens_is_noticed(mixer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(mixer, monkeypatch, loop_over_tokens)
    with pytest.raises(AssertionError, match="operations a token"):
        check_operations(mixer)

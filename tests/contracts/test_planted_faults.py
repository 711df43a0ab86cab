"""Faults planted in the mixers on purpose: each must turn a named check red."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from contracts import learning_mixer
from contracts.checks import CHECKS, small_case, tiny_model
from contracts.learning_mixer import Centred
from plait import catalog, nn
from plait.mixers.context import Context
from plait.mixers.state import Tokens

MIXERS = catalog.names("mixer")


def having(part: type[torch.nn.Module]) -> list[str]:
    """Mixers that have such a part by default."""
    return [name for name in MIXERS if any(isinstance(one, part) for one in tiny_model(name).model.modules())]


Fault = Callable[[Tensor, Context], tuple[Tensor, Context]]
GATED = having(nn.GatedRMSNorm)
CONVOLVED = having(nn.ShortConvolution)


def wrap(
    mixer: str, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Tensor, Context], tuple[Tensor, Context]]
) -> None:
    """Let ``fault`` change what the mixer is given."""
    cls = catalog.get(mixer).load()
    sound = cls.forward

    def forward(self: torch.nn.Module, x: Tensor, context: Context) -> Tensor:
        return sound(self, *fault(x, context))

    monkeypatch.setattr(cls, "forward", forward)


def forget(x: Tensor, context: Context) -> tuple[Tensor, Context]:
    if context.state is not None:
        context.state.clear()
    return x, context


def caught(check: str, case: str) -> bool:
    try:
        CHECKS[check](case)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (forget, "splits"),
        (forget, "padded_continuation"),
        (forget, "beams"),
        (lambda x, context: (x.roll(-1, dims=1), context), "causality"),
        (lambda x, context: (x.roll(1, dims=1), context), "golden"),
        (lambda x, context: (torch.zeros_like(x), context), "past_is_read"),
        (lambda x, context: (x, replace(context, cu_seqlens=None)), "packing"),
        (lambda x, context: (x, replace(context, padding=None)), "padding"),
        (lambda x, context: (x + 0.01 * x.mean(0, keepdim=True), context), "rows"),
        (lambda x, context: (x * 1.001, context), "golden"),
    ],
    ids=[
        "state not carried: splits",
        "state not carried: continuation",
        "state not carried: beams",
        "mask one ahead",
        "mask one behind",
        "past not read",
        "documents run together",
        "padding is read",
        "rows mixed",
        "values scaled",
    ],
)
def test_fault_is_caught(fault: Fault, check: str, mixer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not caught(check, mixer)
    wrap(mixer, monkeypatch, fault)
    assert caught(check, mixer)


@pytest.mark.parametrize("mixer", GATED)
def test_gate_before_norm_is_caught(mixer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def gate_first(self: nn.GatedRMSNorm, x: Tensor, gate: Tensor) -> Tensor:
        product = x * torch.nn.functional.silu(gate)
        return product * torch.rsqrt(product.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight

    monkeypatch.setattr(nn.GatedRMSNorm, "forward", gate_first)
    assert caught("golden", mixer)


@pytest.mark.parametrize("mixer", CONVOLVED)
def test_padding_in_the_convolution_is_caught(mixer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = nn.ShortConvolution.forward

    def forward(self: nn.ShortConvolution, x: Tensor, tail=None, padding=None, cu_seqlens=None):
        return sound(self, x, tail, None, cu_seqlens)

    monkeypatch.setattr(nn.ShortConvolution, "forward", forward)
    assert caught("padded_continuation", mixer)


@pytest.mark.parametrize("mixer", catalog.names("mixer", state="bounded"))
def test_a_cache_that_forgets_too_much_is_caught(mixer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, bound = small_case(mixer), Tokens.bound
    assert not caught("splits", case)
    monkeypatch.setattr(Tokens, "bound", property(lambda self: bound.fget(self) and bound.fget(self) - 1))
    assert caught("splits", case)
    assert caught("uneven_lengths", case)


@pytest.mark.parametrize(
    "fault",
    ["moves in evaluation", "moves when a block computes again", "is not saved"],
)
def test_faulty_running_state_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with learning_mixer.installed():
        assert not caught("running_state", learning_mixer.NAME)
        if fault == "is not saved":
            save = torch.nn.Module._save_to_state_dict

            def forgetful(self: torch.nn.Module, destination: dict, *rest: object) -> None:
                save(self, destination, *rest)
                for name in [name for name in destination if name.endswith("attn.mean")]:
                    destination[name] = torch.zeros_like(destination[name])

            monkeypatch.setattr(Centred, "_save_to_state_dict", forgetful)
        else:
            sound = Centred.forward

            def forward(self: Centred, x: Tensor, context: Context) -> Tensor:
                if fault == "moves in evaluation" or context.before is not None or context.phase == "train":
                    context = replace(context, update_running_state=True)
                return sound(self, x, context)

            monkeypatch.setattr(Centred, "forward", forward)
        assert caught("running_state", learning_mixer.NAME)


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_gradient_that_misses_a_block_is_caught(mixer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = catalog.get(mixer).load()
    sound = cls.forward

    def forward(self: torch.nn.Module, x: Tensor, context: Context) -> Tensor:
        return sound(self, torch.cat([x[:, :64], x[:, 64:128].detach(), x[:, 128:]], dim=1), context)

    monkeypatch.setattr(cls, "forward", forward)
    assert caught("parameter_gradients", mixer)

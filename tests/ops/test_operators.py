"""The operators of ``torch.ops.plait`` called by name: what would read foreign memory is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from plait import ops
from plait.errors import OptionError
from plait.ops.native import absent, softmax  # noqa: F401 - registers its operators

pytestmark = pytest.mark.skipif(absent() is not None, reason=f"native: {absent()}")

Arguments = dict[str, Any]

#: Numbers that no kernel may take for a size, a place or a window.
EXTREME = (-1, 0, 7, 2**31, 2**40, 2**62, -(2**62))


def scan() -> Arguments:
    return {"log_a": -torch.rand(1, 9, 5), "u": torch.randn(1, 9, 5), "state": torch.randn(2, 5),
            "cu_seqlens": torch.tensor([0, 4, 9])}  # fmt: skip


def scan_backward() -> Arguments:
    arguments = scan()
    return {"d_h": torch.randn(1, 9, 5), "log_a": arguments["log_a"], "h": torch.randn(1, 9, 5),
            "state": arguments["state"], "cu_seqlens": arguments["cu_seqlens"]}  # fmt: skip


def depthwise() -> Arguments:
    return {"x": torch.randn(2, 9, 5), "weight": torch.randn(4, 5), "bias": torch.randn(5)}


def depthwise_backward() -> Arguments:
    return {"d_y": torch.randn(2, 6, 5), "x": torch.randn(2, 9, 5), "weight": torch.randn(4, 5)}


def step() -> Arguments:
    return {"q": torch.randn(2, 1, 2, 5), "k": torch.randn(2, 1, 2, 5), "v": torch.randn(2, 1, 4, 3),
            "beta": torch.rand(2, 1, 4), "log_decay": -torch.rand(2, 1, 4, 5), "scale": 0.5,
            "state": torch.randn(2, 4, 5, 3)}  # fmt: skip


def attention() -> Arguments:
    return {"q": torch.randn(1, 40, 2, 5), "k": torch.randn(1, 40, 2, 5), "v": torch.randn(1, 40, 4, 3),
            "beta": torch.rand(1, 40, 4), "log_decay": -torch.rand(1, 40, 4), "state": torch.randn(2, 4, 5, 3),
            "cu_seqlens": torch.tensor([0, 17, 40]), "scale": 0.5, "size": 16, "keep": True}  # fmt: skip


def attention_backward() -> Arguments:
    given = attention()
    del given["keep"]
    scale, size = given.pop("scale"), given.pop("size")
    return {"d_o": torch.randn(1, 40, 4, 3), "d_last": torch.randn(2, 4, 5, 3), **given,
            "last": torch.randn(2, 4, 5, 3), "saved": torch.randn(4, 4, 5, 3),
            "scale": scale, "size": size}  # fmt: skip


def softmax_lists() -> Arguments:
    return {"q": torch.randn(2, 4, 9, 5), "k": torch.randn(2, 2, 9, 5), "v": torch.randn(2, 2, 9, 3),
            "index": torch.tensor([0, 1]).expand(2, 2, 3, 2), "counts": torch.full((2, 2, 3), 2), "scale": 0.5,
            "block": 3, "page": 3, "first": 0, "window": 0, "sinks": 0}  # fmt: skip


def softmax_lists_backward() -> Arguments:
    given = softmax_lists()
    return {"d_o": torch.randn(2, 4, 9, 3), "rest": torch.randn(2, 4, 9), **{name: given[name] for name in "qkv"},
            "lse": torch.randn(2, 4, 9), **{name: x for name, x in given.items() if name not in "qkv"}}  # fmt: skip


CALLS: list[Callable[[], Arguments]] = [
    scan, scan_backward, depthwise, depthwise_backward, step, attention, attention_backward, softmax_lists,
    softmax_lists_backward,
]  # fmt: skip

#: Changes that make another call, and a right one: no other argument has this size.
RIGHT = {
    ("depthwise", "x", "one more 0"), ("depthwise", "x", "one less 0"), ("depthwise", "x", "one more 1"),
    ("depthwise", "x", "one less 1"), ("depthwise", "weight", "one more 0"), ("depthwise", "weight", "one less 0"),
    ("softmax_lists", "q", "one less 2"), ("softmax_lists", "index", "one more 3"),
    ("softmax_lists", "v", "one more 3"), ("softmax_lists", "v", "one less 3"),
    ("softmax_lists_backward", "index", "one more 3"),
}  # fmt: skip


def run(make: Callable[[], Arguments], arguments: Arguments) -> Any:
    return getattr(torch.ops.plait, make.__name__)(*arguments.values())


def refusal(make: Callable[[], Arguments], arguments: Arguments) -> str | None:
    """How the operator refuses these arguments, or None."""
    try:
        run(make, arguments)
    except OptionError as error:
        return str(error)
    return None


def wrong_tensors(name: str, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensor with another shape, dtype, device or layout."""
    yield "added axis", x[None]
    yield "dropped axis", x[0]
    for axis, size in enumerate(x.shape):
        yield f"empty {axis}", x.narrow(axis, 0, 0)
        yield f"one more {axis}", torch.cat([x, x.narrow(axis, 0, 1)], axis)
        if size > 1:
            yield f"one less {axis}", x.narrow(axis, 0, size - 1).contiguous()
    for dtype in (torch.float64, torch.float16, torch.int32, torch.int64, torch.bool, torch.complex64):
        if dtype != x.dtype and not (name == "cu_seqlens" and dtype is torch.int32):
            yield f"{dtype}", x.to(dtype)


def test_every_operator_is_here() -> None:
    registered = {name.partition(".")[0].partition("::")[2] for name in torch._C._dispatch_get_all_op_names()
                  if name.startswith("plait::")}  # fmt: skip
    assert registered == {make.__name__ for make in CALLS}


@pytest.mark.parametrize("make", CALLS, ids=lambda make: make.__name__)
def test_right_arguments_pass(make: Callable[[], Arguments]) -> None:
    found = run(make, make())
    assert all(x.isfinite().all() for x in ([found] if isinstance(found, Tensor) else found))


@pytest.mark.parametrize("make", CALLS, ids=lambda make: make.__name__)
def test_wrong_tensors_are_refused(make: Callable[[], Arguments]) -> None:
    for name, given in make().items():
        if not isinstance(given, Tensor):
            continue
        for kind, wrong in wrong_tensors(name, given):
            if (make.__name__, name, kind) not in RIGHT:
                assert make.__name__ in (refusal(make, make() | {name: wrong}) or ""), (name, kind)


@pytest.mark.parametrize("make", CALLS, ids=lambda make: make.__name__)
def test_layouts_that_the_kernel_does_not_read_are_refused_or_copied(make: Callable[[], Arguments]) -> None:
    for name, given in make().items():
        if not isinstance(given, Tensor) or not given.is_floating_point():
            continue
        arguments = make()
        x = arguments[name]
        for other in (x.mT.contiguous().mT if x.dim() > 1 else x, x.repeat_interleave(2, -1)[..., ::2]):
            message = refusal(make, arguments | {name: other})
            if message is not None:
                assert name in message
                continue
            results = (run(make, arguments | {name: other}), run(make, arguments))
            for a, b in zip(*([x] if isinstance(x, Tensor) else x for x in results), strict=True):
                assert torch.allclose(a, b, atol=1e-5), name


@pytest.mark.parametrize("make", CALLS, ids=lambda make: make.__name__)
def test_numbers_out_of_range_are_refused(make: Callable[[], Arguments]) -> None:
    for name, given in make().items():
        if type(given) is not int:
            continue
        for number in EXTREME:
            message = refusal(make, make() | {name: number})
            if message is None:  # a window, or a place, that is far away
                assert name in ("first", "window", "sinks", "page")
                assert 0 <= number < 2**31
            else:
                assert any(word in message for word in (name, "index"))


def test_borders_and_lists_are_read_before_they_lead_anywhere() -> None:
    for borders in ([0, 4, 10], [0, 9, 4], [1, 9], [-4, 9], [0, 2**62, 9], [0]):
        for make in (scan, scan_backward):
            with pytest.raises(OptionError, match="cu_seqlens"):
                run(make, make() | {"cu_seqlens": torch.tensor(borders)})
    for page in (-1, 3, 2**40, -(2**62)):
        for make in (softmax_lists, softmax_lists_backward):
            with pytest.raises(OptionError, match="index names pages"):
                run(make, make() | {"index": torch.tensor([0, page]).expand(2, 2, 3, 2)})
    for count in (-1, 3, 2**62):
        with pytest.raises(OptionError, match="counts"):
            run(softmax_lists, softmax_lists() | {"counts": torch.full((2, 2, 3), count)})


def test_a_second_derivative_of_an_operator_is_refused() -> None:
    q = torch.randn(1, 4, 2, 3, requires_grad=True)
    o, *_ = torch.ops.plait.attention(q, q, q, None, None, None, None, 0.5, 16, True)
    (d_q,) = torch.autograd.grad(o.pow(2).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match=r"first derivative|does not require grad|once_differentiable"):
        torch.autograd.grad(d_q.sum(), q)


def test_the_operators_give_what_the_functions_give() -> None:
    given = attention()
    found = run(attention, given)[0]
    names = ("q", "k", "v", "beta", "log_decay", "state", "cu_seqlens", "scale")
    want, _ = ops.delta_rule(**{name: given[name] for name in names}, backend="reference")
    assert torch.allclose(found, want, atol=1e-5)

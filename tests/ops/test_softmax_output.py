"""The output alone against ``attention`` on the definition: every way to it, compiled, exported, transformed too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from plait import ops
from plait.errors import OptionError
from plait.ops.softmax import attention, attention_gradients, attention_matrix, attention_output, composite, merge
from plait.ops.softmax.rows import Rows
from plait.ops.visibility import Blocks, Causal, Full, Power, Visibility, Window

SEEN = [Full(), Causal(), Window(5), Window(70, sinks=3), Window(500), Blocks(8, back=1, sinks=2), Power(16)]


def drawn(length: int, stored: int | None = None, *, heads: int = 4, values: int = 8, batch: int = 2) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    stored = length if stored is None else stored
    shapes = (batch, length, heads, 8), (batch, stored, 2, 8), (batch, stored, 2, values)
    return [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]


def near(x: Tensor, y: Tensor, tolerance: float = 1e-12) -> None:
    assert (x - y).abs().max() <= tolerance * max(1.0, float(y.abs().max()))


def exact(*inputs: Any, **options: Any) -> Tensor:
    return attention(*inputs, **options, backend="reference")[0]


@pytest.mark.parametrize("seen", SEEN, ids=str)
@pytest.mark.parametrize("sizes", [(150, 150), (1, 90), (7, 90), (70, 130), (300, 320)], ids=str)
@pytest.mark.parametrize("values", [8, 5, 11])
def test_it_equals_the_definition(seen: Visibility, sizes: tuple[int, int], values: int) -> None:
    q, k, v = drawn(*sizes, values=values)
    near(attention_output(q, k, v, seen), exact(q, k, v, seen))


@pytest.mark.parametrize("seen", SEEN, ids=str)
@pytest.mark.parametrize("sizes", [(150, 150), (1, 90), (7, 90), (70, 130), (300, 320)], ids=str)
def test_padding_in_front_moves_nothing(seen: Visibility, sizes: tuple[int, int]) -> None:
    q, k, v = drawn(*sizes)
    lengths = torch.tensor([sizes[1], sizes[1] - 37])
    o = attention_output(q, k, v, seen, lengths=lengths)
    real = min(sizes[0], sizes[1] - 37)
    near(o[1, -real:], exact(q, k, v, seen, lengths=lengths)[1, -real:])
    near(o[0], exact(q, k, v, seen)[0])
    assert o.isfinite().all()


@pytest.mark.parametrize("seen", SEEN, ids=str)
@pytest.mark.parametrize("sizes", [(150, 150), (7, 90)], ids=str)
def test_sinks_take_their_share(seen: Visibility, sizes: tuple[int, int]) -> None:
    q, k, v = drawn(*sizes)
    for logits in (torch.tensor([0.3, -1.0, 2.0, 0.0]), torch.randn(4, 3, generator=torch.Generator().manual_seed(1))):
        near(attention_output(q, k, v, seen, sink_logits=logits), exact(q, k, v, seen, sink_logits=logits))


@pytest.mark.parametrize("seen", SEEN, ids=str)
def test_documents_do_not_see_each_other(seen: Visibility) -> None:
    q, k, v = drawn(150, batch=1)
    borders = torch.tensor([0, 3, 90, 150])
    near(attention_output(q, k, v, seen, cu_seqlens=borders), exact(q, k, v, seen, cu_seqlens=borders))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("seen", SEEN, ids=str)
def test_blocks_of_queries_with_masks(seen: Visibility, padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What compilers see, on plain tensors; with the smallest masks."""
    monkeypatch.setattr(composite, "ENTRIES", 1)
    q, k, v = drawn(150, 200, values=5)
    lengths = torch.tensor([200, 183]) if padded else None
    rows = Rows(seen, 50, None if lengths is None else 200 - lengths)
    o = composite.by_blocks(*(x.transpose(1, 2) for x in (q, k, v)), rows, 8**-0.5, None).transpose(1, 2)
    near(o, exact(q, k, v, seen, lengths=lengths))


@pytest.mark.parametrize("options", [{}, {"lengths": [130, 77]}, {"sinks": True}], ids=str)
@pytest.mark.parametrize("seen", [Causal(), Window(40)], ids=str)
def test_compiled_and_exported(seen: Visibility, options: dict[str, Any]) -> None:
    class Layer(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            lengths = torch.tensor(options["lengths"]) if "lengths" in options else None
            sinks = q.new_zeros(4) if "sinks" in options else None
            o = attention_output(q, k, v, seen, lengths=lengths, sink_logits=sinks)
            return o if lengths is None else o[:, -min(options["lengths"]) :]

    inputs = drawn(130, values=5)
    wanted = Layer()(*inputs)
    near(torch.compile(Layer(), backend="aot_eager", fullgraph=True)(*inputs), wanted)
    near(torch.export.export(Layer(), tuple(inputs)).module()(*inputs), wanted)
    length = torch.export.Dim("length", min=2, max=4096)
    free = () if "lengths" in options else tuple({1: length} for _ in inputs)
    if free:
        program = torch.export.export(Layer(), tuple(inputs), dynamic_shapes=free).module()
        longer = drawn(190, values=5)
        near(program(*longer), Layer()(*longer))


def test_transforms_of_functions_see_into_it() -> None:
    q, k, v = drawn(100)
    for seen in (Causal(), Window(9)):
        one = torch.func.vmap(lambda q, k, v, seen=seen: attention_output(q[None], k[None], v[None], seen)[0])
        near(one(q, k, v), exact(q, k, v, seen))
        gradient = torch.func.grad(lambda q, seen=seen: attention_output(q, k, v, seen).sum())(q)
        leaf = q.clone().requires_grad_()
        near(gradient, torch.autograd.grad(exact(leaf, k, v, seen).sum(), leaf)[0])


def test_autocast_and_chosen_backends() -> None:
    q, k, v = (x.float() for x in drawn(100))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for seen in (Causal(), Window(9)):
            o = attention_output(q, k, v, seen)
            assert o.dtype == torch.bfloat16
            near(o.float(), exact(q, k, v, seen).float(), 2e-2)
    for name in ("reference", "torch"):
        with ops.backend(name):
            near(attention_output(q, k, v, Causal()), exact(q, k, v, Causal()), 1e-5)


def test_wrong_arguments_are_named() -> None:
    q, k, v = drawn(10)
    with pytest.raises(OptionError, match="attention_output: the 2 heads of k must divide the 3 of q"):
        attention_output(q[:, :, :3], k, v, Causal())


class Largest(TorchDispatchMode):
    """Entries of the largest tensor that any operation makes."""

    entries = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor):
                self.entries = max(self.entries, x.numel())
        return result


@pytest.mark.parametrize(
    "options", [{}, {"lengths": [1024]}, {"lengths": [1001]}, {"cu_seqlens": [0, 500, 1024]}], ids=str
)
@pytest.mark.parametrize("seen", [Causal(), Window(16)], ids=str)
@pytest.mark.parametrize("values", [8, 5])
@pytest.mark.parametrize("first", [0, 512])
def test_no_tensor_has_an_entry_for_every_pair(
    seen: Visibility, options: dict[str, Any], values: int, first: int
) -> None:
    if first and "cu_seqlens" in options:
        return
    inputs = drawn(1024, heads=2, values=values, batch=1)
    inputs[0] = inputs[0][:, first:]
    for x in inputs:
        x.requires_grad_()
    with Largest() as largest:
        attention_output(*inputs, seen, **{name: torch.tensor(x) for name, x in options.items()}).sum().backward()
    assert largest.entries <= 1024 * 2 * 64


def test_weights_are_what_values_are_multiplied_with() -> None:
    q, k, v = drawn(30, 40)
    options: dict[str, Any] = {"lengths": torch.tensor([40, 25]), "sink_logits": torch.tensor([0.1, 0.0, -2.0, 3.0])}
    shares = attention_matrix(q, k, Window(12, sinks=2), **options)
    wide = v.repeat_interleave(2, dim=2)
    near(torch.einsum("bhts,bshd->bthd", shares, wide), exact(q, k, v, Window(12, sinks=2), **options))


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("values", [8, 5])
def test_gradients_of_parts_sum_to_those_of_the_whole(backend: str, values: int) -> None:
    q, k, v = (x.requires_grad_() for x in drawn(20, 50, values=values))
    parts = [(k[:, :30], v[:, :30], Full()), (k[:, 30:], v[:, 30:], Causal())]
    o, lse = merge(*(attention(q, *part) for part in parts))
    d_o = torch.randn(o.shape, generator=torch.Generator().manual_seed(3), dtype=o.dtype)
    wanted = torch.autograd.grad(exact(q, k, v, Causal()), (q, k, v), d_o)
    with torch.no_grad():
        found = [attention_gradients(q, *part, o, lse, d_o, backend=backend) for part in parts]
    near(found[0][0] + found[1][0], wanted[0])
    for i in (1, 2):
        near(torch.cat([found[0][i], found[1][i]], dim=1), wanted[i])


def test_parts_join_in_any_order_and_without_keys() -> None:
    q, k, v = drawn(6, 20)
    whole = attention(q, k, v, Full(), backend="reference")
    parts = [attention(q, k[:, x:y], v[:, x:y], Full()) for x, y in ((0, 2), (2, 13), (13, 20))]
    for first, second, third in (parts, parts[::-1]):
        for o, lse in (
            merge(first, second, third),
            merge(merge(first, second), third),
            merge(first, merge(second, third)),
        ):
            near(o, whole[0])
            near(lse, whole[1])
    nothing = torch.zeros_like(whole[0]), torch.full_like(whole[1], -torch.inf)
    assert torch.equal(merge(whole, nothing)[0], whole[0])
    assert torch.equal(merge(nothing, whole)[0], whole[0])
    assert torch.equal(merge(nothing, nothing)[0], nothing[0])

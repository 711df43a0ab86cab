"""Softmax attention: each backend against the dense definition, and that against a loop over pairs."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from plait.errors import BackendUnavailable, OptionError
from plait.ops import native
from plait.ops.softmax import attention, flex, merge, operations, sparse_attention
from plait.ops.visibility import Blocks, Causal, Disc, Full, PerHead, Power, Visibility, Window, shifted

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
COMPILED = pytest.mark.skipif(native.absent() is not None, reason="the kernels are not compiled")

VISIBILITIES: dict[str, Visibility] = {
    "full": Full(),
    "causal": Causal(),
    "window": Window(7),
    "window, sinks": Window(5, sinks=3),
    "blocks": Blocks(8, back=1, sinks=2, offset=3),
    "whole blocks": Blocks(8, back=1),
    "power": Power(4, window=2),
    "disc": Disc(6, 10, 2.5, text=10),
    "shifted": shifted(8, 0.5),
    "per head": PerHead(((Window(3), 0.25), (Causal(), 0.75))),
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def inputs(
    batch: int = 2, length: int = 70, stored: int = 70, heads: int = 4, owners: int = 2, width: int = 8, values: int = 5
) -> dict[str, Tensor]:
    return {
        "q": drawn(batch, length, heads, width, seed=1),
        "k": drawn(batch, stored, owners, width, seed=2),
        "v": drawn(batch, stored, owners, values, seed=3),
    }


def results(function: Callable[..., tuple[Tensor, Tensor]], tensors: dict[str, Tensor], **options: Any) -> list[Tensor]:
    """Output, log of the sums (0 where nothing is seen) and the gradients of all tensors."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in tensors.items()}
    o, lse = function(**leaves, **options)
    empty = lse == -math.inf
    assert not o[empty].any()
    lse = lse.masked_fill(empty, 0)
    loss = (o * drawn(*o.shape, seed=8).to(o.dtype)).sum() + (lse * drawn(*lse.shape, seed=9).to(o.dtype)).sum()
    return [o, lse, *torch.autograd.grad(loss, list(leaves.values()))]


def agree(
    function: Callable[..., tuple[Tensor, Tensor]],
    tensors: dict[str, Tensor],
    backend: str,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> None:
    expected = results(function, tensors, backend="reference", **options)
    narrow = {name: x.to(dtype) for name, x in tensors.items()}
    computed = results(function, narrow, backend=backend, **options)
    for name, x, y in zip(["o", "lse", *tensors], computed, expected, strict=True):
        assert x.dtype == dtype
        assert (x - y).abs().max() <= TOLERANCE[dtype] * max(1, y.abs().max()), name


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("visibility", VISIBILITIES.values(), ids=VISIBILITIES)
def test_every_visibility_equals_the_definition(visibility: Visibility, backend: str, dtype: torch.dtype) -> None:
    agree(attention, inputs(), backend, dtype, visibility=visibility)


def test_the_definition_is_the_sum_over_pairs() -> None:
    tensors = {**inputs(1, 9, 9), "bias": drawn(1, 4, 9, 9, seed=4), "sink_logits": drawn(4, seed=5)}
    o, lse = attention(**tensors, visibility=Window(3, sinks=1), scale=0.7, softcap=2.0, backend="reference")
    for h in range(4):
        for i in range(9):
            seen = [j for j in range(9) if j <= i and (i - j < 3 or j < 1)]
            dots = [(tensors["q"][0, i, h] @ tensors["k"][0, j, h // 2]).item() for j in seen]
            scores = [
                2 * math.tanh(0.7 * dot / 2) + float(tensors["bias"][0, h, i, j])
                for dot, j in zip(dots, seen, strict=True)
            ]
            total = sum(map(math.exp, scores)) + math.exp(float(tensors["sink_logits"][h]))
            mean = sum(
                math.exp(score) / total * tensors["v"][0, j, h // 2] for score, j in zip(scores, seen, strict=True)
            )
            assert torch.allclose(o[0, i, h], mean, atol=1e-12)  # type: ignore[arg-type]
            assert math.isclose(float(lse[0, i, h]), math.log(total), abs_tol=1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("shape", [(2, 4, 70, 70), (1, 1, 1, 70), (2, 1, 70, 1), (1, 4, 1, 1)])
def test_scores_with_a_cap_a_bias_and_sinks(shape: tuple[int, ...], backend: str, dtype: torch.dtype) -> None:
    tensors = {**inputs(), "bias": drawn(*shape, seed=4), "sink_logits": drawn(4, 3, seed=5)}
    agree(attention, tensors, backend, dtype, visibility=Window(9, sinks=2), softcap=1.5, scale=0.8)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_sinks_alone_reach_the_fused_kernel(backend: str) -> None:
    agree(attention, {**inputs(), "sink_logits": drawn(4, seed=5)}, backend, torch.float32, visibility=Causal())


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("visibility", VISIBILITIES.values(), ids=VISIBILITIES)
def test_padding_in_front_moves_nothing(visibility: Visibility, backend: str) -> None:
    tensors, lengths = inputs(), torch.tensor([70, 23])
    if isinstance(visibility, Disc):
        pytest.skip("an image has all of its tokens")
    agree(attention, tensors, backend, visibility=visibility, lengths=lengths)
    padded = attention(**tensors, visibility=visibility, lengths=lengths, backend=backend)
    alone = attention(**{n: x[1:, 47:] for n, x in tensors.items()}, visibility=visibility, backend=backend)
    for x, y in zip(padded, alone, strict=True):
        assert torch.allclose(x[1:, 47:], y, atol=1e-12)
    assert not padded[0][1, :47].any()
    assert (padded[1][1, :47] == -math.inf).all()


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("visibility", VISIBILITIES.values(), ids=VISIBILITIES)
def test_documents_of_one_row_do_not_see_each_other(visibility: Visibility, backend: str) -> None:
    if isinstance(visibility, Disc):
        pytest.skip("an image has all of its tokens")
    tensors, borders = inputs(1), torch.tensor([0, 1, 34, 70])
    agree(attention, tensors, backend, visibility=visibility, cu_seqlens=borders)
    together = attention(**tensors, visibility=visibility, cu_seqlens=borders, backend=backend)
    second = attention(**{n: x[:, 1:34] for n, x in tensors.items()}, visibility=visibility, backend=backend)
    for x, y in zip(together, second, strict=True):
        assert torch.allclose(x[:, 1:34], y, atol=1e-12)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("visibility", [Causal(), Window(7, sinks=2), Blocks(8, back=1), shifted(8)], ids=str)
def test_chunks_after_a_prefix_equal_one_pass(visibility: Visibility, backend: str) -> None:
    tensors = inputs()
    whole = attention(**tensors, visibility=visibility, backend="reference")
    for first, last in ((0, 30), (30, 31), (31, 70)):
        chunk = {"q": tensors["q"][:, first:last], "k": tensors["k"][:, :last], "v": tensors["v"][:, :last]}
        for x, y in zip(attention(**chunk, visibility=visibility, backend=backend), whole, strict=True):
            assert torch.allclose(x, y[:, first:last], atol=1e-12)
        agree(attention, chunk, backend, torch.float32, visibility=visibility)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("length", [1, 2, 3, 15, 17, 31, 33, 63, 64, 65, 67])
def test_odd_sizes(length: int, backend: str) -> None:
    sizes = inputs(1, length, length, heads=6, owners=3, width=3 + length % 5, values=1 + length % 7)
    for visibility in (Causal(), Window(1 + length // 3)):
        agree(attention, sizes, backend, torch.float32, visibility=visibility)


@pytest.mark.parametrize("backend", ["auto", "reference", "torch"])
def test_nothing_to_see(backend: str) -> None:
    tensors = inputs(2, 3, 3)
    o, lse = attention(
        tensors["q"][:, :0], tensors["k"], tensors["v"], Causal(), lengths=torch.tensor([0, 3]), backend=backend
    )
    assert o.shape == (2, 0, 4, 5)
    assert lse.shape == (2, 0, 4)
    o, lse = attention(**tensors, visibility=Causal(), lengths=torch.tensor([0, 2]), backend=backend)
    assert not o[0].any()
    assert (lse[0] == -math.inf).all()
    assert lse[1, 1:].isfinite().all()


def test_parts_join_to_the_whole() -> None:
    tensors = {**inputs(1), "q": drawn(1, 1, 4, 8, seed=1)}
    whole = results(partial(attention, visibility=Full()), tensors, backend="reference")

    def joined(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        empty = attention(q, k[:, :0], v[:, :0], Full())
        return merge(*(attention(q, x, y, Full()) for x, y in zip(k.split(31, 1), v.split(31, 1), strict=True)), empty)

    for x, y in zip(results(joined, tensors), whole, strict=True):
        assert torch.allclose(x, y, atol=1e-12)
    nothing = attention(tensors["q"], tensors["k"][:, :0], tensors["v"][:, :0], Full())
    assert (merge(nothing, nothing)[1] == -math.inf).all()
    with pytest.raises(OptionError, match="merge: each part"):
        merge(nothing, (nothing[0], nothing[1][:, :, :1]))


def test_the_definition_has_second_derivatives_and_the_others_refuse() -> None:
    tensors = inputs(1, 5, 5)
    x = tuple(tensors.values())
    assert torch.autograd.gradgradcheck(lambda *y: attention(*y, Window(3), backend="reference"), x)
    causal, window = ({"backend": "auto", "visibility": seen} for seen in (Causal(), Window(3)))
    for options in ({"backend": "torch", "visibility": Window(3)}, causal, window):
        (d_q,) = torch.autograd.grad(attention(*x, **options)[0].pow(2).sum(), x[:1], create_graph=True)  # type: ignore[arg-type]
        with pytest.raises(BackendUnavailable, match="first derivative only"):
            d_q.sum().backward()


def listed(batch: int, owners: int, blocks: int, pages: int, most: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random lists of different pages, some of them empty."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.rand(batch, owners, blocks, pages, generator=generator).argsort(-1)[..., :most].sort(-1).values
    return index, torch.randint(0, index.shape[3] + 1, (batch, owners, blocks), generator=generator)


#: Heads, owners of lists, key heads, queries, first query, width, width of values, queries of a block, keys of a page.
LISTS = [
    (4, 4, 2, 70, 0, 8, 8, 16, 8),
    (4, 2, 2, 33, 17, 24, 40, 5, 3),
    (6, 3, 3, 1, 99, 32, 32, 1, 1),
    (4, 1, 2, 65, 0, 16, 7, 64, 16),
    (6, 2, 3, 67, 2, 5, 9, 1, 4),
    (8, 1, 1, 40, 0, 8, 16, 1, 16),
    (2, 2, 1, 130, 1, 8, 16, 100, 1),
]
SPARSE = ["torch", pytest.param("native", marks=COMPILED)]


@pytest.mark.parametrize("backend", [*SPARSE, "auto"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", LISTS, ids=str)
def test_lists_equal_the_definition(size: tuple[int, ...], dtype: torch.dtype, backend: str) -> None:
    heads, owners, kv_heads, length, first, width, values, block, page = size
    if backend == "native" and dtype == torch.float64:
        pytest.skip("the kernels compute in fp32")
    stored = first + length
    tensors = inputs(2, length, stored, heads, kv_heads, width, values)
    index, counts = listed(2, owners, -(-length // block), -(-stored // page), 6)
    options = {"index": index, "counts": counts, "block": block, "page": page, "first": first}
    agree(sparse_attention, tensors, backend, dtype, **options)
    sinks = {**tensors, "sink_logits": drawn(heads, seed=5)}
    agree(sparse_attention, sinks, backend, dtype, scale=0.3, **options)


def test_lists_with_a_cap() -> None:
    index, counts = listed(2, 2, 5, 9, 4)
    agree(sparse_attention, inputs(), "torch", index=index, counts=counts, block=16, page=8, softcap=1.0)


@pytest.mark.parametrize("backend", ["reference", *SPARSE])
def test_what_is_not_counted_is_not_read(backend: str) -> None:
    tensors = {name: x.float() for name, x in inputs(1, 8, 8).items()}
    index = torch.tensor([0, 10**9]).expand(1, 1, 1, 2)
    options: dict[str, Any] = {"block": 8, "page": 4, "backend": backend}
    o, _ = sparse_attention(**tensors, index=index, counts=torch.ones(1, 1, 1, dtype=torch.int64), **options)
    assert torch.equal(o, sparse_attention(**tensors, index=index[..., :1], counts=None, **options)[0])


class Sizes(TorchDispatchMode):
    """The largest tensor that any operation makes, forward or backward."""

    largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.numel())
        return result


def largest(function: Callable[..., tuple[Tensor, Tensor]], tensors: dict[str, Tensor]) -> int:
    with Sizes() as sizes:
        o, lse = function(**tensors)
        (o.sum() + lse.sum()).backward()
    return sizes.largest


LENGTH = 2048


@pytest.mark.parametrize("backend", ["auto", "torch", pytest.param("native", marks=COMPILED)])
@pytest.mark.parametrize("visibility", [Causal(), Window(64, sinks=4), Blocks(64, back=1), Power(64)], ids=str)
@pytest.mark.parametrize("values", [8, 5])
def test_no_tensor_has_an_entry_for_every_pair(visibility: Visibility, values: int, backend: str) -> None:
    tensors = {name: x.float() for name, x in inputs(1, LENGTH, LENGTH, 2, 1, 8, values).items()}
    assert largest(partial(attention, visibility=visibility, backend=backend), tensors) <= LENGTH**2 / 8
    with pytest.raises(AssertionError):  # the definition has such a tensor: the measure sees it
        assert largest(partial(attention, visibility=visibility, backend="reference"), tensors) < LENGTH**2


NATIVE: dict[str, Visibility] = {
    "causal": Causal(),
    "window": Window(7),
    "window, sinks": Window(30, sinks=3),
    "whole blocks": Blocks(8, back=1),
    "power": Power(4, window=2),
}


@COMPILED
@pytest.mark.parametrize("sizes", [(2, 70, 70, 4, 2, 8, 5), (1, 65, 130, 6, 3, 33, 17)], ids=str)
@pytest.mark.parametrize("visibility", NATIVE.values(), ids=NATIVE)
def test_the_compiled_kernel_equals_the_definition(visibility: Visibility, sizes: tuple[int, ...]) -> None:
    if sizes[2] > sizes[1] and isinstance(visibility, (Blocks, Power)):
        pytest.skip("queries begin inside a block")
    agree(attention, inputs(*sizes), "native", torch.float32, visibility=visibility)
    lengths = torch.tensor([sizes[2] - 9] * sizes[0])
    if not isinstance(visibility, (Blocks, Power)) or sizes[2] == sizes[1]:
        agree(attention, inputs(*sizes), "native", torch.float32, visibility=visibility, lengths=lengths)


@COMPILED
def test_the_compiled_kernel_takes_bf16_and_refuses_what_it_does_not_know() -> None:
    tensors = {name: x.bfloat16() for name, x in inputs().items()}
    expected = attention(**tensors, visibility=Window(9), backend="reference")
    computed = attention(**tensors, visibility=Window(9), backend="native")
    assert computed[0].dtype == torch.bfloat16
    assert (computed[0] - expected[0]).abs().max() < 0.02
    assert torch.allclose(computed[1], expected[1], atol=1e-4)
    for options in ({"softcap": 1.0}, {"visibility": Full()}, {"visibility": Blocks(8, sinks=1)}):
        with pytest.raises(BackendUnavailable, match="'native' cannot serve: its kernels know"):
            attention(**{**tensors, "visibility": Causal(), **options}, backend="native")  # type: ignore[arg-type]
    with pytest.raises(BackendUnavailable, match="fp64"):
        attention(**inputs(), visibility=Causal(), backend="native")


@pytest.mark.parametrize("block", [1, 64])
@pytest.mark.parametrize("backend", SPARSE)
def test_lists_make_no_tensor_with_an_entry_for_every_pair(backend: str, block: int) -> None:
    tensors = {name: x.float() for name, x in inputs(1, LENGTH, LENGTH, 2, 1, 8, 8).items()}
    index, _ = listed(1, 1, LENGTH // block, LENGTH // 64, 4)
    call = partial(sparse_attention, index=index, counts=None, block=block, page=64, backend=backend)
    assert largest(call, tensors) <= LENGTH**2 / 2


def test_flex_refuses_a_cpu_and_masks_as_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {name: x.detach() for name, x in inputs(2, 70, 70, values=8).items()}
    with pytest.raises(BackendUnavailable, match="CUDA tensors and the tensors are on cpu"):
        attention(**tensors, visibility=Causal(), backend="flex")
    monkeypatch.setattr(flex, "refuses", lambda q: None)
    bias = drawn(1, 4, 1, 70, seed=4).detach()
    index, counts = listed(2, 2, 5, 9, 4)
    calls = [
        partial(attention, **tensors, visibility=Window(9, sinks=2), softcap=1.5, bias=bias),
        partial(attention, **tensors, visibility=Causal(), lengths=torch.tensor([70, 40])),
        partial(sparse_attention, **tensors, index=index, counts=counts, block=16, page=8),
    ]
    for call in calls:
        o, lse = call(backend="reference")
        seen = lse > -math.inf
        computed = call(backend="flex")
        assert torch.allclose(computed[0][seen], o[seen], atol=1e-6)


def test_messages_name_the_argument() -> None:
    q, k, v = inputs(1, 4, 6).values()
    lengths, borders = torch.tensor([3]), torch.tensor([0, 4])
    index = torch.zeros(1, 1, 1, 1, dtype=torch.int64)
    wrong: list[tuple[str, Callable[[], object]]] = [
        ("k", lambda: attention(q, k[..., :3], v, Causal())),
        ("heads of k must divide", lambda: attention(q[:, :, :3], k, v, Causal())),
        ("v .* must be", lambda: attention(q, k, v[:, :4], Causal())),
        ("one dtype", lambda: attention(q.float(), k, v, Causal())),
        ("visibility", lambda: attention(q, k, v, None)),  # type: ignore[arg-type]
        ("bias", lambda: attention(q, k, v, Causal(), bias=q)),
        ("sink_logits", lambda: attention(q, k, v, Causal(), sink_logits=q[0, 0, :3, 0])),
        ("softcap", lambda: attention(q, k, v, Causal(), softcap=0)),
        ("first", lambda: attention(q, k, v, Causal(), first=3)),
        ("cu_seqlens", lambda: attention(q, k, v, Causal(), cu_seqlens=borders)),
        ("lengths", lambda: attention(q, k, v, Causal(), lengths=lengths + 4)),
        ("no backend named 'fal'", lambda: attention(q, k, v, Causal(), backend="fal")),
        ("index", lambda: sparse_attention(q, k, v, index.int(), None, block=4, page=6)),
        ("pages 1 to 1", lambda: sparse_attention(q, k, v, index + 1, None, block=4, page=6)),
        ("counts", lambda: sparse_attention(q, k, v, index, index[..., 0] + 2, block=4, page=6)),
        ("block", lambda: sparse_attention(q, k, v, index, None, block=0, page=6)),
        ("beyond", lambda: sparse_attention(q, k, v, index, None, block=4, page=6, first=3)),
    ]
    for message, call in wrong:
        with pytest.raises(OptionError, match=message):
            call()


def test_autocast_lowers_queries_keys_and_values_alone() -> None:
    tensors = {name: x.float() for name, x in inputs().items()}
    index, counts = listed(2, 2, 5, 9, 4)
    calls = partial(attention, visibility=Causal()), partial(attention, visibility=Disc(6, 10, 2.5, text=10))
    for call in (*calls, partial(sparse_attention, index=index, counts=counts, block=16, page=8)):
        expected = call(**{name: x.bfloat16() for name, x in tensors.items()})
        with torch.autocast("cpu", torch.bfloat16):
            o, lse = call(**{**tensors, "v": tensors["v"].bfloat16()})
        assert o.dtype == torch.bfloat16
        assert torch.equal(o, expected[0])
        assert torch.equal(lse, expected[1])


def test_a_block_asks_for_the_backend_of_softmax_too() -> None:
    from plait import ops

    with ops.backend("reference"):
        assert operations._backend("auto", drawn(1))[0] == "reference"

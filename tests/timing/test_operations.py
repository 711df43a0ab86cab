"""Operations: sizes and names select, peers agree before they are timed, rates count what they say."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from plait import ops
from plait.cli import app as front
from plait.errors import BackendUnavailable, OptionError, PlaitError
from plait.timing import cases, operations
from plait.timing.cases import CASES, case
from plait.timing.machine import require_device
from plait.timing.operations import agree, chosen_operations, time_operations
from plait.timing.peers import Peer
from plait.timing.shapes import SIZES, Shape, chosen_shapes
from plait.timing.work import chunkwise_operations, scan_bytes

TINY = Shape(1, 40, 2, 8)
SOFTMAX, LOOP = "softmax (SDPA)", "Python loop"
PEERS = {
    "delta_rule, decay per head": {"transformers", "transformers, recurrent", LOOP, SOFTMAX},
    "linear_attention, constant decay": {"transformers, Lightning", LOOP, SOFTMAX},
    "linear_attention, decay per head": {"transformers, Mamba-2", LOOP, SOFTMAX},
    "linear_attention, decay per channel": {"PyTorch, chunks of 16", LOOP, SOFTMAX},
    "linear_scan": {"PyTorch, chunks of 16", LOOP},
    "softmax attention, causal": {SOFTMAX},
    "softmax attention, window 256": {SOFTMAX},
    "sparse_attention, 1/8 of the pages a block of 64": {SOFTMAX},
    "sparse_attention, 16 pages a query": {SOFTMAX},
}


def test_a_shape_is_read_as_it_is_printed() -> None:
    assert str(Shape.parse("B1-T4096-H8-D64")) == "B1-T4096-H8-D64"
    assert Shape.parse("B4-T16384-H8-D128") == Shape(4, 16384, 8, 128)


@pytest.mark.parametrize("text", ["B1-T0-H8-D64", "B1-T4k-H8-D64", "T64-B1-H8-D64", "B1-T64-H8", " B1-T64-H8-D64"])
def test_another_form_of_shape_is_an_error_that_shows_the_form(text: str) -> None:
    with pytest.raises(OptionError, match="B1-T4096-H8-D64"):
        Shape.parse(text)


def test_named_shapes_replace_the_sizes() -> None:
    assert chosen_shapes("full", []) == SIZES["full"]
    assert chosen_shapes("full", [str(TINY)]) == [TINY]


def test_full_covers_every_batch_head_count_width_and_the_longest_context() -> None:
    full = SIZES["full"]
    assert {shape.batch for shape in full} == {1, 4}
    assert {shape.heads for shape in full} == {4, 8, 16}
    assert {shape.width for shape in full} == {64, 128}
    assert {shape.tokens for shape in full} >= {512, 1024, 2048, 4096, 16384, 65536}


def test_operations_are_chosen_by_parts_of_their_names() -> None:
    assert chosen_operations([]) == list(CASES)
    assert chosen_operations(["linear_scan", "per channel"]) == ["linear_attention, decay per channel", "linear_scan"]
    with pytest.raises(OptionError, match=r"operation 'gmres' .* 'linear_scan'"):
        chosen_operations(["gmres"])


def test_operations_counted_by_hand() -> None:
    C, K = 64, 16
    products = 2 * C * K * K  # with the state
    halves = C * C * K  # the lower half of a product of chunks
    assert chunkwise_operations("linear_attention", Shape(1, C, 1, K)) == 2 * products + 2 * halves
    assert chunkwise_operations("delta_rule", Shape(1, C, 1, K)) == 3 * products + 4 * halves
    assert chunkwise_operations("delta_rule", Shape(3, 2 * C, 5, K)) == 30 * (3 * products + 4 * halves)
    assert chunkwise_operations("delta_rule", Shape(1, C, 1, K), "forward+backward") == 9 * products + 12 * halves


def test_bytes_of_a_scan_counted_by_hand() -> None:
    assert scan_bytes(4, 2) == 4 + 2 + 2  # reads decays and inputs, writes states
    assert scan_bytes(4, 2, "forward+backward") == 8 + (4 + 2 + 2) + (4 + 2)  # also writes gradients


@pytest.mark.parametrize("operation", CASES)
@pytest.mark.parametrize("tokens", [40, 300])
def test_every_peer_agrees(operation: str, tokens: int) -> None:
    found = case(operation, Shape(2, tokens, 3, 8))
    agree(found)
    assert {peer.name for peer in found.peers} == PEERS[operation]
    assert found.gradient.shape == found.function(*found.inputs).shape


@pytest.mark.parametrize("operation", CASES)
def test_peers_have_the_same_gradient_of_the_values(operation: str) -> None:
    found = case(operation, TINY)

    def gradient(inputs: tuple[torch.Tensor, ...], peer: Peer | None) -> torch.Tensor:
        leaves = tuple(x.detach().clone().requires_grad_() for x in inputs)
        prepared = leaves if peer is None else peer.prepare(leaves)
        output = found.function(*leaves) if peer is None else peer.function(*prepared)
        values = leaves[1] if operation == "linear_scan" else leaves[2]
        return torch.autograd.grad(output, values, found.gradient)[0]

    ours = gradient(found.inputs, None)
    for peer in found.peers:
        if peer.same:
            torch.testing.assert_close(gradient(found.inputs, peer), ours, rtol=1e-3, atol=1e-4, msg=peer.name)


def test_every_operation_is_timed_against_its_peers_in_both_directions() -> None:
    heard: list[str] = []
    timings = time_operations([TINY], repeats=2, announce=heard.append)
    assert heard == [f"{operation} at B1-T40-H2-D8" for operation in CASES]
    found = {(timing.operation, timing.peer) for timing in timings}
    assert found == {(operation, peer) for operation, peers in PEERS.items() for peer in peers}
    assert len(timings) == 2 * len(found)
    for timing in timings:
        assert timing.ratio_low <= timing.ratio <= timing.ratio_high
        assert timing.shape == "B1-T40-H2-D8"
        assert timing.backend == (case(timing.operation, TINY).backend or ops.choose("cpu")[0])
        assert timing.ceiling == ("copy GB/s" if timing.operation == "linear_scan" else "matmul GFLOP/s")
        assert 0 < timing.share < 1
        work = case(timing.operation, TINY).work(timing.direction)
        assert timing.rate == pytest.approx(work / timing.milliseconds / 1e6)


def test_one_row_can_be_asked_for() -> None:
    timings = time_operations([TINY], repeats=2, operations=["scan"], directions=["forward"])
    assert {(timing.operation, timing.direction) for timing in timings} == {("linear_scan", "forward")}
    assert {timing.peer for timing in timings} == PEERS["linear_scan"]


def test_a_peer_with_another_result_stops_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    right = case("linear_scan", TINY)
    wrong = dataclasses.replace(right, peers=[Peer("wrong", lambda *inputs: right.function(*inputs) * 1.01)])
    monkeypatch.setattr(operations, "case", lambda *_: wrong)
    with pytest.raises(PlaitError, match="plait and wrong differ by 1"):
        time_operations([TINY], repeats=2, operations=["linear_scan"])


def test_long_loops_are_left_out() -> None:
    shape = Shape(1, cases.LONGEST_LOOP + 1, 1, 2)
    for operation in CASES:
        looped = {peer.name for peer in case(operation, shape).peers if peer.loop}
        assert looped == ({LOOP} if operation == "linear_scan" else set())
    longer = case("linear_scan", Shape(1, cases.LONGEST_SCAN_LOOP + 1, 1, 2))
    assert [peer.name for peer in longer.peers] == ["PyTorch, chunks of 16"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_an_error_with_a_mend() -> None:
    with pytest.raises(BackendUnavailable, match="--device cpu"):
        require_device("cuda")


@pytest.mark.gpu
def test_on_a_gpu_every_peer_agrees_and_is_timed() -> None:
    timings = time_operations([Shape(1, 512, 4, 64)], "cuda", repeats=2)
    assert {timing.operation for timing in timings} == set(CASES)


def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(SIZES, "small", [TINY])
    with pytest.raises(SystemExit) as end:
        front.main(["bench", "ops", "--operation", "linear_scan", "--json"])
    assert end.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert result["machine"]["device"] == "cpu"
    assert result["machine"]["backend"] == ops.choose("cpu")[0]
    assert result["ceilings"]["matmul GFLOP/s"] > 0
    assert [row["direction"] for row in result["timings"]] == ["forward"] * 2 + ["forward+backward"] * 2
    assert all(row["repeats"] == 7 for row in result["timings"])


def test_the_table_says_what_the_ratio_means(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timing = time_operations([TINY], repeats=2, operations=["linear_scan"])[0]
    asked: list[object] = []
    monkeypatch.setattr(operations, "time_operations", lambda *arguments: asked.extend(arguments) or [timing])
    with pytest.raises(SystemExit):
        front.main(["bench", "ops", "--shape", "B1-T40-H2-D8", "--operation", "scan", "--direction", "forward"])
    assert asked[:5] == [[TINY], "cpu", 7, ["linear_scan"], ["forward"]]
    text = capsys.readouterr().out
    assert "above 1, plait is faster" in text
    assert f"{timing.ratio:.2f}" in text.splitlines()[-1]


@pytest.mark.slow
def test_the_delta_rule_is_faster_than_transformers() -> None:
    torch.use_deterministic_algorithms(False)  # poisoned buffers cost time
    timings = time_operations([Shape(1, 2048, 8, 64)], operations=["delta_rule"], directions=["forward"])
    against = {timing.peer: timing for timing in timings}
    assert against["transformers"].ratio > 1, against["transformers"]

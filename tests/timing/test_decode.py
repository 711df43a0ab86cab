"""Decoding: the state that is stepped on is that of the context, peers agree, memory is watched."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from plait import ops
from plait.cli import app as front
from plait.errors import OptionError, PlaitError
from plait.timing import decode
from plait.timing.cases import Tokens
from plait.timing.decode import MAMBA2, RECURRENT, time_decoding
from plait.timing.shapes import Shape


def test_every_recurrence_is_timed_at_every_context() -> None:
    heard: list[str] = []
    found = {one.operation: one for one in time_decoding(2, 8, (3, 10), steps=20, repeats=2, announce=heard.append)}
    assert list(found) == heard
    assert {operation: set(one.peers) for operation, one in found.items()} == {
        "delta_rule, decay per head": {RECURRENT},
        "linear_attention, decay per head": {RECURRENT, MAMBA2},
        "linear_attention, decay per channel": {RECURRENT},
        "linear_scan": {RECURRENT},
    }
    for operation, one in found.items():
        assert list(one.contexts) == [3, 10]
        assert one.flatness == pytest.approx(max(one.contexts.values()) / min(one.contexts.values()))
        assert one.state_bytes == (2 * 8 * 4 if operation == "linear_scan" else 2 * 8 * 8 * 4)
        assert one.backend == ops.choose("cpu")[0]


def test_states_are_those_after_each_context() -> None:
    piece = Tokens(Shape(1, 4, 2, 8), "cpu")
    step = decode._recurrences()["linear_scan"][0]
    states = decode._states(step, piece, (4, 8))
    twice = torch.cat([piece.log_a, piece.log_a], 1), torch.cat([piece.u, piece.u], 1)
    torch.testing.assert_close(states[4], ops.linear_scan(piece.log_a, piece.u)[1])
    torch.testing.assert_close(states[8], ops.linear_scan(*twice)[1])


def test_a_running_sequence_leaves_the_state_that_it_starts_from() -> None:
    token = Tokens(Shape(1, 1, 2, 8), "cpu")
    start = torch.ones(1, 2, 8, 8)
    for operation, (step, peers) in decode._recurrences().items():
        if operation == "linear_scan":
            continue
        for run in (step, *peers.values()):
            running = decode.Running(run, token, start)
            with torch.no_grad():
                running()
            assert torch.equal(start, torch.ones(1, 2, 8, 8)), operation
            assert running.state is not None
            assert not torch.equal(running.state, start)


def test_a_peer_with_another_result_stops_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    right = decode._recurrent_delta_rule()

    def wrong(token: Tokens, state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        output, state = right(token, state)
        return 1.01 * output, state

    monkeypatch.setattr(decode, "_recurrent_delta_rule", lambda: wrong)
    with pytest.raises(PlaitError, match="delta_rule, decay per head: one token of plait and of transformers"):
        time_decoding(2, 8, (3,), steps=1, repeats=2)


@pytest.mark.parametrize("contexts", [(), (10, 3), (3, 3), (0, 3)])
def test_contexts_must_increase(contexts: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match="must increase"):
        time_decoding(2, 8, contexts)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what is resident now")
def test_decoding_keeps_nothing_but_the_state() -> None:
    step = decode._recurrences()["delta_rule, decay per head"][0]
    token = Tokens(Shape(1, 1, 2, 32), "cpu")
    with torch.no_grad():
        running = decode.Running(step, token, None)
        assert decode.grown_bytes(running, 2000) < 2 << 20  # its 2000 states would be 16 MiB


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--heads", "1", "--width", "4", "--contexts", "2,5", "--steps", "5"]
    with pytest.raises(SystemExit) as end:
        front.main(["bench", "decode", *arguments, "--json"])
    assert end.value.code == 0
    rows = json.loads(capsys.readouterr().out)["decoding"]
    assert [set(row["contexts"]) for row in rows] == [{"2", "5"}] * 4
    assert all(row["steps"] == 5 and row["repeats"] == 7 for row in rows)
    with pytest.raises(SystemExit) as end:
        front.main(["bench", "decode", "--contexts", "1k"])
    assert end.value.code == 2

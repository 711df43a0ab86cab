"""The benchmark of attention in pieces: who takes part, what is sent, and that every way computes the same."""

from __future__ import annotations

import json

import pytest
import torch

from plait.cli import app as front
from plait.errors import OptionError
from plait.ops.softmax import attention_output
from plait.ops.visibility import Causal
from plait.timing.sequence import ALONE, VANILLA, time_sequence, vanilla
from plait.timing.shapes import Shape


def test_every_way_is_timed_with_its_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        front.main(["bench", "sequence", "--shape", "B1-T32-H4-D8", "--direction", "forward", "--json"])
    assert end.value.code == 0
    found = {t["way"]: t for t in json.loads(capsys.readouterr().out)["timings"]}
    assert list(found) == [ALONE, VANILLA, "gather", "ring", "heads"]
    block = 16 * 4 * 8 * 4  # bytes of a piece's keys, or queries, or values, or outputs
    sent = {"gather": 2 * block, "ring": 2 * block, "heads": 4 * block / 2, ALONE: 0, VANILLA: 0}
    assert {way: t["megabytes"] * 1e6 for way, t in found.items()} == pytest.approx(sent)
    assert {way: t["processes"] for way, t in found.items()} == {
        w: 2 if w in ("gather", "ring", "heads") else 1 for w in sent
    }
    assert found[ALONE]["over_fused"] == {"median": 1.0, "low": 1.0, "high": 1.0}


def test_vanilla_is_the_same_function(generator: torch.Generator) -> None:
    q, k, v = (torch.randn(2, 9, 3, 4, dtype=torch.float64, generator=generator) for _ in range(3))
    torch.testing.assert_close(vanilla(q, k, v), attention_output(q, k, v, Causal()))


def test_heads_that_cannot_be_shared_are_an_error() -> None:
    with pytest.raises(OptionError, match=r"--processes 2 .* 3 heads"):
        time_sequence(Shape(1, 8, 3, 4), 2, 7, False, lambda _: None)

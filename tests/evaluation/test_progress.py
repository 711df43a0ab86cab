"""What a measurement says of itself while it runs."""

from __future__ import annotations

import pytest

from plait.evaluation.progress import PAUSE, Bar, duration


def test_lines_give_rate_and_time_left(capsys: pytest.CaptureFixture) -> None:
    now = 0.0
    with Bar("niah", 100, "rows", clock=lambda: now) as bar:
        for seconds in (4.0, 2 * PAUSE, 2 * PAUSE + 1, 4 * PAUSE):
            now = seconds
            bar.advance(20)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "niah",
        "niah: 40 of 100 rows, 2 a second, 30 s left",
        "niah: 80 of 100 rows, 2 a second, 10 s left",
    ]


def test_a_total_that_grows_is_taken(capsys: pytest.CaptureFixture) -> None:
    now = 0.0
    bar = Bar("piqa", 1, clock=lambda: now)
    now = PAUSE
    bar.advance(10, 1210)
    assert "10 of 1,210 samples, 1 a second, 20 min 0 s left" in capsys.readouterr().err


def test_a_silent_bar_says_nothing(capsys: pytest.CaptureFixture) -> None:
    with Bar("niah", 1, shown=False) as bar:
        bar.advance(1)
    assert capsys.readouterr() == ("", "")


def test_durations_for_people() -> None:
    assert [duration(seconds) for seconds in (0.4, 59, 61, 7260)] == ["0 s", "59 s", "1 min 1 s", "2 h 1 min"]

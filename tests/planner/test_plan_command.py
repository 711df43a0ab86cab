"""``plait plan``: text, JSON and page."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from plait.cli.app import main
from plait.planner import devices
from plait.planner.candidates import Grid, Load
from plait.planner.request import make_plan
from plait.report.plan_page import render

ARGUMENTS = ["plan", "--params", "1.3B", "--context", "131072", "--batch", "8", "--memory", "24GiB"]
FEW = [*ARGUMENTS, "--mixer", "deltanet", "--ratio", "pure", "--ratio", "24:1", "--ratio", "3:1", "--window", "0"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_json_names_what_fits_and_what_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(run(capsys, *FEW, "--json"))
    plans = {one["key"]: one for one in content["plans"]}
    assert plans["deltanet 24:1 period_r kv=32"]["cache_bytes"] == 8 * 131072 * 2 * 2048 * 2
    assert plans["deltanet 24:1 period_r kv=32"]["recall"]["value"] == 0.417
    assert plans["deltanet pure"]["front"]
    assert all(one["memory"] <= 24 * 2**30 for one in plans.values())
    assert all(one["memory"] > 24 * 2**30 for one in content["dropped"]["too_large"])
    assert content["load"] == {"context": 131072, "batch": 8, "dtype": "bfloat16"}


def test_text_says_what_was_dropped_and_hides_what_is_beaten(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, *FEW)
    assert re.search(r"\d+ of \d+ plans do not fit in 24 GiB", text)
    assert "24:1' with placement='block_r_plus_1' needs 25 layers" in text
    assert "Recall: RULER averages printed in 2507.06457" in text
    assert re.search(r"combinations? cannot be built: ratio='24:1'", text)
    shown = text.count("\ndeltanet ")
    assert run(capsys, *FEW, "--all").count("\ndeltanet ") > shown


def test_parts_of_the_memory_add_up_under_their_headings(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "--layers", "4", "--hidden-size", "256", "--context", "8192", "--mixer", "gla", "--all"]
    command += ["--ratio", "3:1", "--window", "0", "--window", "1024", "--kv-heads", "2"]
    text = run(capsys, *command)
    header = next(line for line in text.splitlines() if line.startswith("plan"))
    names = ["weights", "grows", "bounded", "constant", "working", "memory"]
    assert [name for name in header.split() if name in names] == names
    plans = {one["key"]: one for one in json.loads(run(capsys, *command, "--json"))["plans"]}
    windowed = plans["transformer kv=2 window=1024"]
    assert windowed["cache_bytes"] == 0
    assert windowed["window_bytes"] == 4 * 1023 * 2 * 128 * 2, "4 layers, the 1,023 tokens before, bf16"
    parts = ("weight_bytes", "cache_bytes", "window_bytes", "state_bytes", "working_bytes")
    assert all(one["memory"] == sum(one[part] for part in parts) for one in plans.values())


def test_page_is_whole(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run(capsys, *FEW, "--out", str(tmp_path / "plan.html"))
    page = (tmp_path / "plan.html").read_text(encoding="utf-8")
    assert "Recall against memory" in page
    assert "8 x 131,072 tokens in 24 GiB" in page
    assert not re.search(r'<(script|link|img)[^>]+(src|href)="http', page)


def test_half_a_shape_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--layers", "4"])
    assert ended.value.code == 1
    assert "--layers and --hidden-size go together" in capsys.readouterr().err


def test_hostile_names_are_shown_as_they_are() -> None:
    hostile = "</script><img src=x onerror=alert(1)>"
    grid = Grid(mixers=["deltanet"], ratios=["3:1"], placements=["period_r"], windows=[None])
    plan = make_plan(1_300_000_000, Load(4096, 1), devices.device("h100"), grid=grid)
    one = next(one for one in plan.choice.fits if one.recall is not None)
    assert one.recall is not None
    recall = dataclasses.replace(one.recall, source=hostile)
    named = dataclasses.replace(one, mixer=hostile, ratio=hostile, bound=hostile, recall=recall)
    choice = dataclasses.replace(plan.choice, fits=[named], front=[named])
    plan = dataclasses.replace(plan, choice=choice, recall=hostile)
    page = render(plan, f"plait plan {hostile}", everything=True)
    clean = render(dataclasses.replace(plan, choice=dataclasses.replace(choice, fits=[one], front=[one])), "plait plan")
    assert page.count("</script>") == clean.count("</script>")
    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page


def test_a_placement_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["plan", "--placement", "period"])
    assert end.value.code == 1
    assert "There is no placement 'period'. Did you mean 'period_r'?" in capsys.readouterr().err

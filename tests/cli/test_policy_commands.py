"""Commands around policies, probes and claims, on a shipped fixture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from plait.cli.app import main
from plait.drawing.panels import panels_svg
from plait.errors import CatalogError, OptionError
from plait.evaluation.frontier import DENSE, Grid, Point
from plait.evaluation.subject import Subject, open_subject
from plait.evaluation.tasks import predict
from plait.evaluation.texts import TextMeasurement
from plait.evaluation.under_policy import under_policy
from plait.report.figures_page import write_figures_page
from plait.report.frontier import figures

FIXTURE = "fixture:recall-small"


@pytest.fixture(scope="module")
def subject() -> Subject:
    return open_subject(FIXTURE)


def call(capsys: pytest.CaptureFixture, arguments: Sequence[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def result(capsys: pytest.CaptureFixture, arguments: Sequence[str]) -> Any:
    status, out, err = call(capsys, [*arguments, "--json"])
    assert status == 0, err
    return json.loads(out)


# ---- run


def test_run_writes_the_new_text_alone_and_says_what_the_policy_did(capsys: pytest.CaptureFixture) -> None:
    prompt = "import os, sys, json, re, math\n" * 4 + "import o"
    command = ["run", FIXTURE, "--policy", "streaming", "--prompt", prompt, "--max-new-tokens", "6"]
    command += ["--option", "window=16", "--option", "sinks=2"]
    status, text, err = call(capsys, command)
    assert status == 0
    assert prompt not in text
    assert "policy    streaming in layers 0, 1, 2, 3" in err
    assert "tokens/s" in err
    share = float(err.split("  decode")[1].split("(")[1].split("%")[0])
    assert share == pytest.approx(100 * 18 / 135, abs=0.5), "16 of the window and 2 sinks, of about 135 keys"

    status, echoed, err = call(capsys, [*command, "--echo", "--quiet"])
    assert text.strip()
    assert (echoed, err) == (prompt + text, "")
    told = result(capsys, command)
    assert (told["text"] + "\n", told["new_tokens"]) == (text, 6)
    assert told["policy"]["decode"]["pairs"] / told["policy"]["decode"]["dense_pairs"] == pytest.approx(
        share / 100, abs=1e-3
    )


def test_the_layers_of_the_prefill_are_counted_in_a_terminal(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    command = ["run", FIXTURE, "--policy", "dense", "--prompt", "import os", "--max-new-tokens", "3"]
    _, out, err = call(capsys, command)
    lines = err.split("\r")
    assert [line for line in lines if line.startswith("prefill of")] == [
        f"prefill of 9 tokens: layer {index} of 4" for index in (1, 2, 3)
    ]
    assert "prefill" not in out
    assert "prefill of" not in call(capsys, [*command, "--quiet"])[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "streaming"], "one of the two"),
        (["--policy", "streamin", "--prompt", "a"], "Did you mean 'streaming'"),
        (["--policy", "streaming", "--prompt", "a", "--option", "windows=3"], "Did you mean 'window'"),
        (["--policy", "streaming", "--prompt", "a", "--temperature", "0"], "must be above 0"),
        (["--policy", "streaming", "--prompt-file", "absent.txt"], "absent.txt"),
    ],
)
def test_run_says_what_is_wrong(capsys: pytest.CaptureFixture, arguments: list[str], message: str) -> None:
    status, _, err = call(capsys, ["run", FIXTURE, *arguments])
    assert status == 1
    assert message in err


# ---- evaluation


def test_predictions_token_by_token_are_those_of_one_pass_at_full_budget(subject: Subject) -> None:
    ids = torch.randint(3, 200, (3, 40), generator=torch.Generator().manual_seed(0))
    with under_policy(subject, "dense", {}) as (dense, _):
        assert torch.equal(predict(dense, ids, 25)[:, 25:], predict(subject, ids)[:, 25:])
        assert bool((predict(dense, ids, 25)[:, :25] == -1).all())
    assert subject.model(input_ids=ids).logits.isfinite().all()


def test_a_policy_changes_what_is_measured_and_under_which_name(subject: Subject) -> None:
    with under_policy(subject, "streaming", {"window": 8}) as (changed, applied):
        assert changed.name == f'{FIXTURE} under streaming {{"window": 8}}'
        assert changed.fingerprint != subject.fingerprint
        predict(changed, torch.randint(3, 200, (1, 40)), 30)
        assert 0 < applied.report().share < 1
    with under_policy(subject, "streaming", {"window": 9}) as (other, _):
        assert other.fingerprint != changed.fingerprint
    with pytest.raises(CatalogError), under_policy(subject, "nothing", {}):
        pass


def test_eval_measures_under_a_policy(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    common = ["eval", FIXTURE, "--tasks", "niah", "--lengths", "128", "--limit", "12", "--out", str(tmp_path)]
    dense = result(capsys, common)["results"][0]
    narrow = result(capsys, [*common, "--policy", "streaming", "--policy-option", "window=12"])["results"][0]
    wide = result(capsys, [*common, "--policy", "quest"])["results"][0]
    assert dense["scores"][0]["score"] == wide["scores"][0]["score"] == 1.0
    assert narrow["scores"][0]["score"] < 0.5, "needles lie outside of the window"
    assert len(list(tmp_path.glob("*.json"))) == 3


def test_a_loss_on_text_is_refused_where_it_would_mislead(subject: Subject) -> None:
    text = TextMeasurement("python-stdlib", 64)
    for name, message in (("vertical_slash", "looking at later tokens"), ("quest", "it changes nothing")):
        with under_policy(subject, name, {}) as (changed, _), pytest.raises(OptionError, match=message):
            text.check(changed)
    with under_policy(subject, "streaming", {"window": 8}) as (changed, _):
        text.check(changed)


def test_policy_options_need_a_policy(capsys: pytest.CaptureFixture) -> None:
    status, _, err = call(capsys, ["eval", FIXTURE, "--tasks", "niah", "--policy-option", "window=2"])
    assert status == 1
    assert "--policy-option goes with --policy" in err


# ---- frontier


def test_frontier_measures_every_policy_at_every_budget(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    command = ["frontier", FIXTURE, "--policies", "streaming,quest", "--budgets", "0.25,1", "--tasks", "niah"]
    command += ["--lengths", "128", "--limit", "8", "--out", str(tmp_path)]
    status, out, err = call(capsys, [*command, "--json"])
    assert status == 0
    assert "[5/5] niah length=128, quest at budget 1\n" in err
    points = {(p["policy"], p["budget"]): p for p in json.loads(out)["points"]}
    assert set(points) == {("dense", 1.0), *((name, share) for name in ("streaming", "quest") for share in (0.25, 1.0))}
    for name in ("streaming", "quest"):
        assert points[name, 1.0]["score"] == points["dense", 1.0]["score"]
    assert points["quest", 0.25]["decode"] < 0.3
    assert points["streaming", 0.25]["score"] < 0.6 < points["quest", 0.25]["score"]
    page = (tmp_path / "frontier.html").read_text()
    assert page.count("<svg") == 1
    assert "niah length=128" in page
    again = {(p["policy"], p["budget"]): p for p in result(capsys, command)["points"]}
    assert again == points, "a second call reads scores, pairs and bytes of the first"


def test_a_frontier_draws_what_was_measured_and_not_what_was_asked_for() -> None:
    def point(policy: str, budget: float, score: float, *costs: float | None) -> Point:
        return Point(policy, budget, "task", score, score, score, "bootstrap", *costs, {})

    chart = figures(
        [
            point(DENSE, 1, 0.9, None, 1.0, 1.0),
            point("a", 1, 0.9, None, 0.95, 1.2),
            point("a", 0.1, 0.2, None, 0.3, 1.1),
            point("b<i>", 0.1, 0.4, None, 0.15, 0.2),
        ]
    )[0]
    assert [trace.name for trace in chart.traces] == ["dense", "a", "b<i>"]
    assert [[mark.at for mark in trace.marks] for trace in chart.traces] == [
        [(None, 1.0, 1.0)],
        [(None, 0.3, 1.1), (None, 0.95, 1.2)],
        [(None, 0.15, 0.2)],
    ]
    svg = panels_svg(chart)
    tree = ElementTree.fromstring(svg)
    assert svg.count("nothing to measure here") == 1, "no pairs in the prefill"
    said = [element.text or "" for element in tree.iter("{http://www.w3.org/2000/svg}title")]
    assert "a, budget 0.1: score 0.200 (0.200 to 0.200); decode 30.0%, cache 110.0% of dense" in said
    assert "b<i>, budget 0.1: score 0.400 (0.400 to 0.400); decode 15.0%, cache 20.0% of dense" in said
    ticks = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert ticks.count("150%") == 1, "the cache's panel reaches beyond the dense one"


def test_a_frontier_refuses_budgets_out_of_range() -> None:
    for budgets in ([], [0.0, 0.5], [1.5]):
        with pytest.raises(OptionError, match="budgets"):
            Grid(["streaming"], budgets, ["niah"], [128], 1)


def test_figures_on_one_page_do_not_share_their_styles(tmp_path: Path) -> None:
    chart = figures(
        [
            Point(DENSE, 1, "t", 0.9, 0.8, 1, "none", None, None, None, {}),
            Point("a", 1, "t", 1, 1, 1, "none", 1, 1, 1, {}),
        ]
    )
    svg = panels_svg(chart[0])
    shown = (["h"], [["<c>"]])
    page = write_figures_page(tmp_path / "page.html", "<T>", "lead", [svg, svg], shown, "plait x").read_text()
    assert "&lt;T&gt;" in page
    assert "<td>&lt;c&gt;</td>" in page
    for index in (0, 1):
        assert f'<svg id="figure-{index}"' in page
        assert f"#figure-{index} .line{{" in page
    assert "@media(prefers-color-scheme:dark)" not in page, "colours are the page's"


# ---- probe


def test_probe_finds_heads_and_masks_them(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    command = ["probe", FIXTURE, "retrieval_heads", "--samples", "6", "--mask", "4", "--out", str(tmp_path)]
    found = result(capsys, command)
    best = [row for row in found["table"] if row["retrieval"] and row["score"] > 0.5]
    assert {row["layer"] for row in best} == {3}
    recall = {(row["heads"], row["chosen"]): row["recall"] for row in found["masked"]}
    assert recall[0, "none"] == 1
    assert recall[4, "top"] < 0.5 < recall[4, "random"], "masking the found heads destroys recall, others do not"
    assert (tmp_path / "table.csv").read_text().startswith("layer,head,score")
    assert (tmp_path / "figure.svg").exists()


def test_probe_reads_a_text(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("import os\n" * 30)
    command = ["probe", FIXTURE, "attention_sinks", "--text", str(text), "--length", "64", "--samples", "2"]
    table = result(capsys, [*command, "--out", str(tmp_path)])["table"]
    assert len(table) == 4 * 4 * 2
    status, _, err = call(capsys, [*command, "--samples", "90"])
    assert (status, "samples of 64 need" in err) == (1, True)


def test_probe_prints_a_sentence_and_few_rows_and_all_on_demand(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("import os\n" * 30)
    command = ["probe", FIXTURE, "attention_sinks", "--text", str(text), "--length", "64", "--samples", "2"]
    file = tmp_path / "kept" / "sinks.json"
    _, out, _ = call(capsys, [*command, "--rows", "5", "--out", str(file)])
    sentence, empty, header, *rows = out.splitlines()[:8]
    assert sentence.startswith("Token ")
    assert empty == ""
    assert header.split() == ["layer", "head", "token", "score", "primary", "sink"]
    scores = [float(row.split()[3]) for row in rows]
    assert len(rows) == 5
    assert scores == sorted(scores, reverse=True)
    assert "The 5 highest of 32 rows, by score; --rows all prints every one." in out
    kept = json.loads(file.read_text())
    assert (kept["sentence"], len(kept["table"])) == (sentence, 32)
    assert file.with_suffix(".svg").exists()
    _, out, _ = call(capsys, [*command, "--rows", "all", "--out", str(tmp_path / "all.csv")])
    assert len(out.splitlines()) == 3 + 32 + 3
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 33
    status, _, err = call(capsys, [*command, "--rows", "few"])
    assert (status, "--rows 'few'" in err) == (1, True)
    status, _, err = call(capsys, ["probe", FIXTURE, "attention_sinks"])
    assert (status, "give --text FILE" in err) == (1, True)
    status, _, err = call(capsys, [*command, "--mask", "2"])
    assert (status, "belongs to retrieval_heads" in err) == (1, True)


# ---- claim


def test_claims_are_listed_shown_and_tabled(capsys: pytest.CaptureFixture) -> None:
    listed = result(capsys, ["claim", "list"])
    verdicts = {row["name"]: row["verdict"] for row in listed}
    assert verdicts["gates_reach_the_transformer"] == "does not hold"
    shown = result(capsys, ["claim", "show", "gates_reach_the_transformer"])
    assert shown["evidence"]["seeds"] == [0, 1, 2]
    status, out, _ = call(capsys, ["claim", "table"])
    assert status == 0
    assert len(out.strip().splitlines()) == 2 + len(listed)
    status, out, _ = call(capsys, ["claim", "show", "retrieval_heads_are_causal"])
    assert "verdict     holds" in out
    status, _, err = call(capsys, ["claim", "run", "gates_reach"])
    assert (status, "There is no claim 'gates_reach'" in err) == (1, True)


# ---- calibrate


def test_calibrate_writes_what_the_policy_takes(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    heads = tmp_path / "heads.json"
    command = ["calibrate", FIXTURE, "duo_attention", "--data", "task:niah", "--length", "64", "--preset", "small"]
    command += ["--option", "steps=2", "--data-option", "queries=1", "--out", str(heads)]
    found = result(capsys, command)
    assert (found["kind"], found["file"]) == ("head_table", str(heads))
    assert len(found["values"]["heads"]) == 4
    told = result(capsys, ["run", FIXTURE, "--policy", "duo_attention", "--option", f"heads={heads}", "--prompt", "ab"])
    assert told["policy"]["layers"] == [0, 1, 2, 3]
    status, _, err = call(capsys, command)
    assert status == 1
    assert "exists" in err
    other = ["run", "fixture:recall-small-hybrid", "--policy", "duo_attention", "--option", f"heads={heads}"]
    status, _, err = call(capsys, [*other, "--prompt", "ab"])
    assert (status, "rows" in err or "another model" in err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["quest", "--data", "task:niah"], "duo_attention"),
        (["duo_attention", "--data", "task:niah", "--option", "stepz=2"], "steps"),
        (["duo_attention", "--data", "task:nia"], "niah"),
        (["duo_attention", "--data", "BOOK", "--data-option", "queries=1"], "task:NAME"),
    ],
)
def test_what_cannot_be_calibrated_says_why(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    book = tmp_path / "book.txt"
    book.write_text("It was a dark and stormy night. " * 20, encoding="utf-8")
    arguments = [str(book) if argument == "BOOK" else argument for argument in arguments]
    status, _, err = call(capsys, ["calibrate", FIXTURE, *arguments])
    assert status == 1
    assert words in err

"""``plait study scaling``: its file, its summary from made-up loss logs, its page, and one tiny study that trains."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from plait.cli.study import app
from plait.errors import OptionError, StudyError
from plait.files.writing import write_json
from plait.models.architecture import Architecture
from plait.report.scaling_charts import law_chart
from plait.report.scaling_page import render, write_page
from plait.study.scaling import table
from plait.study.scaling.file import grid_study, load_scaling, parse_scaling
from plait.study.scaling.plan import plan_count
from plait.study.scaling.summarise import architecture_key, summarise_scaling
from plait.study.scaling.summary import ScalingSummary
from plait.study.store import Store
from plait.study.trials import Trial, trials

ROOT = Path(__file__).parents[2]

SCALING: dict[str, Any] = {
    "name": "small",
    "base": {
        "model": {"num_hidden_layers": 2, "mixers": {"attention": {"num_heads": 2}, "gla": {"num_heads": 2}}},
        "data": {"corpus": "python-stdlib", "length": 32, "max_bytes": 60_000},
        "training": {"steps": 400, "batch_size": 4, "warmup_steps": 2, "log_every": 4},
        "evaluate": {"limit": 8, "ar_hits": False},
    },
    "mixers": ["gla"],
    "ratios": ["pure", "1:1"],
    "sizes": [
        {"hidden_size": 16, "intermediate_size": 32},
        {"hidden_size": 32, "intermediate_size": 64, "mixers": {"gla": {"num_heads": 4}}},
        {"hidden_size": 64, "intermediate_size": 128},
    ],
    "seeds": [0, 1],
    "fit": {"skip_steps": 8, "bins_per_decade": 6, "resamples": 50},
}


def changed(**values: Any) -> dict[str, Any]:
    """The file with some keys replaced."""
    return {**copy.deepcopy(SCALING), **values}


def prepared(folder: Path, values: dict[str, Any] = SCALING) -> tuple[Store, list[Trial]]:
    """A folder with the study in it, and its trials."""
    study = grid_study(parse_scaling(values, "small.yaml"), "small.yaml")
    store = Store(folder)
    store.write_study(study, "small.yaml", "plait study scaling small.yaml")
    return store, trials(study)


def finish(store: Store, trial: Trial, losses: list[tuple[int, float]]) -> None:
    """Write the result of a run that never ran."""
    store.begin(trial)
    training = trial.config.training
    tokens = training.steps * training.batch_size * trial.config.data.length
    train = {"losses": losses, "tokens": tokens, "seconds": 1.0}
    about = {"versions": {"plait": "0"}, "machine": "none", "commit": None, "started": 5.0, "ended": 65.0}
    store.finish(trial, {"train": train, **about})


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[Trial]]:
    """Losses touch 50 C^-0.1 after 100 steps of each size and lie above elsewhere; the transformer's are 1 % higher.

    A size lies above by 0.005 times the square of its distance in ln C, so that the nearest one is the best.
    """
    store, found = prepared(tmp_path_factory.mktemp("known"))
    for trial in found:
        count = plan_count(Architecture.of(trial.config).config, trial.config.data.length)
        factor = 1.01 if trial.config.model.ratio == "full" else 1.0
        per_step = trial.config.training.batch_size * trial.config.data.length * count.flops_per_token
        losses = [
            (step, factor * 50 * (step * per_step) ** -0.1 * math.exp(0.005 * math.log(step / 100) ** 2))
            for step in range(4, 401, 4)
        ]
        finish(store, trial, losses)
    return store, found


@pytest.fixture(scope="module")
def summary(known: tuple[Store, list[Trial]]) -> ScalingSummary:
    return summarise_scaling(parse_scaling(SCALING, "small.yaml"), known[0])


def test_grid_of_the_file() -> None:
    found = trials(grid_study(parse_scaling(SCALING, "small.yaml"), "small.yaml"))
    assert len(found) == 3 * 3 * 2
    assert {architecture_key(trial) for trial in found} == {"transformer", "gla pure", "gla 1:1"}
    assert {trial.config.training.final_fraction for trial in found} == {1.0}
    pure = [trial.config.model for trial in found if architecture_key(trial) == "gla pure" and trial.seed == 0]
    widths = [(model.hidden_size, model.intermediate_size, model.mixers["gla"]["num_heads"]) for model in pure]
    assert widths == [(16, 32, 2), (32, 64, 4), (64, 128, 2)]
    hybrid = next(trial.config.model for trial in found if trial.key == "gla 1:1 hidden_size=32")
    assert hybrid.mixers == {"attention": {"num_heads": 2}, "gla": {"num_heads": 4}}


def test_the_shipped_file() -> None:
    scaling = load_scaling(ROOT / "studies" / "scaling-toy.yaml")
    found = trials(grid_study(scaling, "scaling-toy.yaml"))
    assert {architecture_key(trial) for trial in found} == {
        "transformer",
        "gated_deltanet pure",
        "gated_deltanet 3:1",
    }
    assert {trial.config.model.hidden_size for trial in found} == {32, 64, 96, 128}
    assert all(trial.config.training.steps <= 2000 for trial in found)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (changed(sizes=[{"hidden_size": 16}, {"num_hidden_layers": 2}]), "has no 'hidden_size'"),
        (changed(sizes=[{"hidden_size": 16}, {"hidden_size": 16, "num_hidden_layers": 4}]), r"\[16, 16\]"),
        (changed(sizes=[{"hidden_size": 16}, {"hidden_size": 32, "hiden_ratio": 2}]), "hiden_ratio"),
        (changed(sizes=[{"hidden_size": 16}]), "at least 2"),
        (changed(mixers=["gls"]), "'gls' does not exist"),
        (changed(fits={}), "Did you mean 'fit'"),
        (changed(base={**SCALING["base"], "training": {"final_fraction": 0.1}}), "final_fraction = 0.1"),
    ],
)
def test_wrong_files(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_scaling(values, "small.yaml")


def test_envelope_and_laws_of_made_up_runs(summary: ScalingSummary) -> None:
    assert [one.key for one in summary.architectures] == ["transformer", "gla pure", "gla 1:1"]
    for one in summary.architectures:
        assert one.laws["loss"].exponent == pytest.approx(-0.1, abs=0.01)
        assert one.laws["loss"].residual < 0.02
        assert one.laws["parameters"].exponent > 0
        assert one.laws["tokens"].exponent > 0
        assert {point.size for point in one.envelope} == {"16", "32", "64"}
        assert (one.low, one.high) == (one.envelope[0].flops, one.envelope[-1].flops)
        assert one.resamples > 25


def test_compute_of_a_run_is_steps_times_tokens_times_flops(summary: ScalingSummary) -> None:
    """The transformer of width 16: 4 * 256 + 3 * 16 * 32 + 2 * 16 parameters a layer, 6 T d of mixing a token."""
    size = summary.architectures[0].sizes[0]
    assert size.parameters == 2 * 2592
    assert size.flops_per_token == 2 * (6 * 2592 + 6 * 32 * 16)
    first = summary.architectures[0].envelope[0]
    assert first.flops == pytest.approx(first.tokens * size.flops_per_token)
    assert first.tokens > 8 * 4 * 32  # after the steps that are skipped
    assert first.tokens <= 400 * 4 * 32


def test_loss_at_equal_compute_is_read_inside_every_range(summary: ScalingSummary) -> None:
    comparison = summary.comparison
    assert comparison is not None
    assert comparison.flops == min(one.high for one in summary.architectures)
    assert all(one.low <= comparison.flops <= one.high for one in summary.architectures)
    assert set(comparison.losses) == {"transformer", "gla pure", "gla 1:1"}
    transformer = 1.01 * 50 * comparison.flops**-0.1
    assert comparison.losses["transformer"] == pytest.approx(transformer, rel=0.02)


def test_runs_that_are_missing_are_counted(known: tuple[Store, list[Trial]], tmp_path: Path) -> None:
    store, found = prepared(tmp_path)
    with pytest.raises(StudyError, match=r"No run of .* has finished"):
        summarise_scaling(parse_scaling(SCALING, "small.yaml"), store)
    for trial in found[:1]:
        result = known[0].result(trial)
        assert result is not None
        finish(store, trial, result["train"]["losses"])
    partial = summarise_scaling(parse_scaling(SCALING, "small.yaml"), store)
    assert (partial.runs, partial.finished) == (18, 1)
    assert "16' has the lowest loss at every amount" in partial.architectures[0].reason
    said = " ".join(table.notes(partial))
    assert "1 of 18 runs have finished" in said
    assert "transformer has no fit" in said
    assert table.rows(partial)[0][2:] == ["–"] * 5
    assert "no fit" in render(partial)


def test_a_run_at_a_falling_rate_is_refused(tmp_path: Path) -> None:
    store, found = prepared(tmp_path)
    finish(store, found[0], [(4, 3.0), (8, 2.0)])
    path = store.folder / "study.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["study"]["base"]["training"]["final_fraction"] = 0.1
    del record["sha256"]
    write_json(path, record, sealed=True)
    falling = store.trials()[0]
    finish(store, falling, [(4, 3.0), (8, 2.0)])
    with pytest.raises(StudyError, match=r"falls to 0\.1"):
        summarise_scaling(parse_scaling(SCALING, "small.yaml"), store)


def test_skipping_everything_is_an_error(known: tuple[Store, list[Trial]]) -> None:
    late = parse_scaling(changed(fit={"skip_steps": 400}), "small.yaml")
    with pytest.raises(StudyError, match="no loss was logged after step 400"):
        summarise_scaling(late, known[0])


def test_lines_of_the_charts_end_where_the_envelope_ends(summary: ScalingSummary) -> None:
    from plait.drawing.style import mixer_styles

    styles = mixer_styles(one.mixer for one in summary.architectures)
    for law in ("loss", "parameters", "tokens"):
        chart = law_chart(summary.architectures, styles, law)
        assert "nothing is drawn beyond" in chart.note
        fits = [trace for trace in chart.data if "fit" in trace["hovertemplate"]]
        assert [trace["x"] for trace in fits] == [[one.low, one.high] for one in summary.architectures]
        for trace, one in zip(fits, summary.architectures, strict=True):
            fit = one.laws[law]
            assert trace["y"][0] == pytest.approx(fit.coefficient * one.low**fit.exponent)
    curves = [trace for trace in law_chart(summary.architectures, styles, "loss").data if "opacity" in trace]
    assert len(curves) == 9


def test_page_opens_offline_and_says_where_the_fits_hold(summary: ScalingSummary, tmp_path: Path) -> None:
    page = write_page(summary, tmp_path).read_text(encoding="utf-8")
    own = page.split('<script type="application/json"')[0]  # below stands plotly, whose text names addresses
    assert not re.search(r'(?:src|href)="(?!https://arxiv\.org|data:)', own)
    assert "nothing is extrapolated" in page
    assert "nothing is drawn beyond" in page
    for one in summary.architectures:
        assert f"{one.low:.2g} to {one.high:.2g}" in page
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == summary.model_dump(mode="json")


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["scaling", *map(str, arguments)], catch_exceptions=False)


def test_report_of_what_is_done(known: tuple[Store, list[Trial]], tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(SCALING), encoding="utf-8")
    shown = invoke(file, "--out", known[0].folder, "--report")
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert lines[0].split("  ")[0] == "architecture"
    assert lines[1].startswith("transformer ")
    assert "nothing is extrapolated" in shown.stdout
    content = json.loads(invoke(file, "--out", known[0].folder, "--report", "--json").stdout)
    assert [one["key"] for one in content["architectures"]] == ["transformer", "gla pure", "gla 1:1"]


def test_a_tiny_study_trains_and_is_fitted(tmp_path: Path) -> None:
    values = changed(transformer=False, ratios=["1:1"], seeds=[0], workers=1, fit={"skip_steps": 4})
    values["sizes"] = values["sizes"][:2]
    values["base"]["training"] |= {"steps": 24, "log_every": 2, "learning_rate": 0.01}
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    content = json.loads(invoke(file, "--out", tmp_path / "out", "--json").stdout)
    assert (content["runs"], content["finished"]) == (2, 2)
    [one] = content["architectures"]
    assert one["key"] == "gla 1:1"
    losses = [point["loss"] for point in one["envelope"]]
    assert losses == sorted(losses, reverse=True)
    assert one["envelope"][-1]["tokens"] <= 24 * 4 * 32
    assert (tmp_path / "out" / "report.html").is_file()

"""Studies with tracks of tasks beside language modelling and recall: columns, guards, and what they leave alone."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from plait.cli.study import app
from plait.errors import OptionError
from plait.planner.devices import device
from plait.study.file import load_study, parse_study
from plait.study.plan import Machine, plan
from plait.study.progress import StudyProgress
from plait.study.store import Store
from plait.study.summarise import summarise
from plait.study.summary import StudySummary
from plait.study.trials import Trial, trials
from study.evaluations import evaluation, mqar, task

NEEDLES = {"task": "niah_multiquery", "options": {"vocab_size": 40}}
STUDY: dict[str, Any] = {
    "name": "tracks",
    "base": {"model": {"hidden_size": 16, "num_hidden_layers": 4, "mixers": {"gla": {"num_heads": 2}}}},
    "tracks": {
        "recall": {"kind": "recall", "data": {"task": "mqar"}},
        "ruler": {"kind": "task", "data": {"length": 64, "mixture": [NEEDLES, {"task": "variable_tracking"}]}},
        "state": {
            "kind": "task",
            "learnt": None,
            "data": {"task": "parity", "options": {"length": 16}},
            "evaluate": {"measure": [{"tasks": ["parity"], "lengths": [32]}]},
        },
    },
    "grid": {"mixers": ["gla"], "ratios": ["pure", "3:1"]},
    "contexts": [256],
}

RULER = {"transformer": 0.95, "gla pure": 0.31, "gla 3:1": 0.93}
STATE = {"transformer": 0.55, "gla pure": 0.52, "gla 3:1": 0.61}


def changed(track: str, **values: Any) -> dict[str, Any]:
    content = copy.deepcopy(STUDY)
    content["tracks"][track] |= values
    return content


def result(trial: Trial, ruler: float) -> dict[str, Any]:
    if trial.track == "ruler":
        needles, variables = ruler + 0.04, ruler - 0.04
        measured = [task("niah_multiquery", [needles] * 2, 0.1), task("variable_tracking", [variables] * 2, 0.02)]
    elif trial.track == "state":
        value = STATE[trial.key]
        measured = [task("parity", [value - 0.01, value + 0.01], 0.5)]
        measured.append(task("parity length=32", [0.5, 0.52], 0.5, trained=False))
    else:
        measured = [mqar(16, 2, [0.96, 0.98])]
    return {
        "evaluation": evaluation(*measured),
        "train": {"losses": [[1, 5.0]], "seconds": 1.0, "tokens": 10},
        "versions": {},
        "machine": "m",
        "commit": None,
        "started": 0.0,
        "ended": 1.0,
    }


def made(folder: Path, content: dict[str, Any] = STUDY, ruler: dict[str, float] = RULER) -> StudySummary:
    store, study = Store(folder), parse_study(content, "tracks.yaml")
    store.write_study(study, "tracks.yaml", "plait study run tracks.yaml")
    for trial in trials(study):
        store.begin(trial)
        store.finish(trial, result(trial, ruler[trial.key]))
    return summarise(folder)


def test_each_track_of_tasks_is_a_metric_with_its_chance(tmp_path: Path) -> None:
    summary = made(tmp_path)
    metrics = {one.key: one.metrics for one in summary.configurations}
    for key, value in RULER.items():
        assert metrics[key]["task:ruler"].mean == pytest.approx(value)
        assert metrics[key]["task:ruler"].chance == pytest.approx(0.06)
        assert metrics[key]["task:ruler@niah_multiquery"].mean == pytest.approx(value + 0.04)
        assert metrics[key]["task:state"].mean == STATE[key]
        assert metrics[key]["suite:state@parity length=32, accuracy"].mean == 0.51
    assert summary.tracks == {"recall": "recall", "ruler": "task", "state": "task"}


def test_guard_per_track_and_none_where_nothing_is_asked(tmp_path: Path) -> None:
    guards = {guard.track: guard for guard in made(tmp_path).guards}
    assert list(guards) == ["recall", "ruler"]  # what the store wrote keeps 'learnt: null' of state
    assert (guards["ruler"].metric, guards["ruler"].learnt) == ("task:ruler", True)
    assert guards["ruler"].accuracy == pytest.approx(0.95)
    assert guards["ruler"].message.startswith("The transformer learnt track 'ruler': accuracy 0.950, at least 0.9")
    own = made(tmp_path / "own", changed("ruler", learnt=0.96)).guards[1]
    assert (own.threshold, own.learnt) == (0.96, False)
    asked = made(tmp_path / "asked", changed("state", learnt=0.54)).guards[2]
    assert (asked.track, asked.accuracy, asked.learnt) == ("state", 0.55, True)


def test_track_that_is_not_learnt_says_so_and_leaves_the_recommendation(tmp_path: Path) -> None:
    whole, void = made(tmp_path / "a"), made(tmp_path / "b", ruler={**RULER, "transformer": 0.5})
    assert not void.guards[1].learnt
    assert "did not learn track 'ruler' (accuracy 0.500, 0.9 was asked for)" in void.guards[1].message
    assert void.recommendation == whole.recommendation
    assert void.recommendation.key == "gla pure"  # recall alone decides: all have 0.97


def test_tracks_of_tasks_alone_give_no_recommendation(tmp_path: Path) -> None:
    content = copy.deepcopy(STUDY)
    del content["tracks"]["recall"]
    summary = made(tmp_path, content)
    assert summary.recommendation.key is None
    assert "the study has no such track" in summary.recommendation.sentences[0]


def test_progress_says_the_accuracy(tmp_path: Path) -> None:
    made(tmp_path)
    store = Store(tmp_path)
    ended = next(trial for trial in store.trials() if (trial.track, trial.key) == ("ruler", "gla 3:1"))
    progress = StudyProgress(store, store.trials())
    with progress.console.capture() as printed:
        progress.ended(ended)
    assert "ruler | gla 3:1 | seed 0  accuracy 0.930, 1 s" in printed.get()


def test_terminal_has_a_column_per_track(tmp_path: Path) -> None:
    made(tmp_path, ruler={**RULER, "transformer": 0.5})
    printed = CliRunner().invoke(app, ["report", str(tmp_path)], catch_exceptions=False).stdout.splitlines()
    assert printed[0].split("  ")[0] == "configuration"
    assert printed[0].split()[1:4] == ["recall", "ruler", "state"]
    rows = {line[:12].strip(): line[12:].split() for line in printed[1:4]}
    assert rows["gla pure"][:3] == ["0.970", "0.310", "0.520"]
    assert any(line.startswith("  void: The transformer did not learn track 'ruler'") for line in printed)
    content = json.loads(CliRunner().invoke(app, ["report", str(tmp_path), "--json"]).stdout)
    assert content["configurations"][0]["metrics"]["task:ruler"]["mean"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed("ruler", learnt=1.5), "tracks.ruler.learnt = 1.5"),
        (changed("recall", learnt=None), "tracks.recall.learnt = None: the recommendation rests on recall"),
        (changed("state", kind="lm", learnt=0.5), "tracks.state.learnt = 0.5: a track of kind 'lm' has no accuracy"),
        (
            {**STUDY, "tracks": {"a@b": STUDY["tracks"]["ruler"]}},
            "tracks.a@b: the name of a track of kind 'task' becomes a column",
        ),
        (changed("ruler", kind="recall"), "2 tracks of kind 'recall'"),
    ],
)
def test_file_errors(content: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_study(content, "tracks.yaml")


TEXT = {"corpus": "python-stdlib"}


@pytest.mark.parametrize(
    ("kind", "data", "wanted"),
    [
        ("task", TEXT, "a task"),
        ("task", {"mixture": [{**NEEDLES, "end": 0.5}, {**TEXT, "start": 0.5}]}, "a task"),
        ("recall", NEEDLES, "the task mqar"),
        ("lm", NEEDLES, "a corpus"),
    ],
)
def test_data_must_hold_what_the_track_measures(kind: str, data: dict[str, Any], wanted: str) -> None:
    study = parse_study({**STUDY, "tracks": {"one": {"kind": kind, "data": data}}}, "tracks.yaml")
    with pytest.raises(OptionError, match=f"track 'one': a track of kind '{kind}' needs {wanted}"):
        trials(study, "tracks.yaml")


def test_recall_keeps_the_threshold_of_the_study() -> None:
    study = parse_study({**STUDY, "thresholds": {"learnt": 0.7}}, "tracks.yaml")
    assert {name: track.learnt for name, track in study.tracks.items()} == {"recall": 0.7, "ruler": 0.7, "state": None}
    again = parse_study(study.model_dump(mode="json"), "study.json")
    assert again == study


def test_plan_takes_the_largest_part_of_a_mixture() -> None:
    study = parse_study(STUDY, "tracks.yaml")
    budgets = {one.track: one for one in plan(study, trials(study), Machine(device("cpu"))) if one.key == "gla pure"}
    steps = 1000 * 16
    assert (budgets["ruler"].tokens, budgets["state"].tokens) == (steps * 64, steps * 16)
    difference = budgets["ruler"].parameters - budgets["state"].parameters
    assert difference == 2 * 16 * (256 - 2)  # embedding and head; variable tracking has 256 ids, parity two


def test_another_track_changes_no_trial() -> None:
    without = copy.deepcopy(STUDY)
    del without["tracks"]["ruler"], without["tracks"]["state"]
    before = {trial.hash for trial in trials(parse_study(without, "tracks.yaml"))}
    after = {trial.hash for trial in trials(parse_study(STUDY, "tracks.yaml")) if trial.track == "recall"}
    assert before == after
    guarded = trials(parse_study(changed("ruler", learnt=0.5), "tracks.yaml"))
    assert [t.hash for t in guarded] == [t.hash for t in trials(parse_study(STUDY, "tracks.yaml"))]


def test_trials_of_the_mini_study_keep_their_names() -> None:
    found = trials(load_study(Path(__file__).parents[2] / "studies" / "hybrid-linear-mini.yaml"))
    names = {(trial.track, trial.key, trial.seed): trial.hash for trial in found}
    assert names["lm", "transformer", 0] == "c6b489e2b0c8b1a5"
    assert names["recall", "transformer", 0] == "b49eae0fc489f5a5"
    assert names["lm", "gated_deltanet pure", 0] == "b77f22bbc979a16b"

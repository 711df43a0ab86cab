"""The summary of results that were made up, against values by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from plait.report.baselines import standings, verdict
from plait.report.page import render
from plait.study.file import parse_study
from plait.study.store import Store
from plait.study.summarise import summarise
from plait.study.trials import Trial, trials
from study.evaluations import evaluation, mqar, score
from study.evaluations import result as result_of

STUDY = {
    "name": "made-up",
    "base": {"model": {"hidden_size": 16, "num_hidden_layers": 4, "mixers": {"gla": {"num_heads": 2}}}},
    "tracks": {
        "lm": {"kind": "lm", "data": {"corpus": "python-stdlib"}},
        "recall": {"kind": "recall", "data": {"task": "mqar"}, "seeds": [0]},
    },
    "grid": {"mixers": ["gla"], "ratios": ["pure", "3:1"]},
    "seeds": [0, 1, 2],
    "contexts": [256, 32],
}

LOSSES = {"transformer": 1.50, "gla pure": 1.52, "gla 3:1": 1.51}
RECALLS = {"transformer": 0.97, "gla pure": 0.40, "gla 3:1": 0.96}


def result(trial: Trial, recall: float, started: float = 0.0, ended: float = 10.0) -> dict[str, Any]:
    loss = LOSSES[trial.key] + 0.001 * trial.seed
    if trial.track == "lm":
        baselines = {
            "bytes": 90,
            "gzip": 4.5,
            "xz": 5.0,
            "ngram": {"bits_per_byte": 3.02, "length": 3, "train_bytes": 1000},
        }
        metrics = {"bits per byte": 2 * loss, "loss": loss, "loss on AR hits": loss / 2}
        scores = [score(name, value, more={"baselines": baselines}) for name, value in metrics.items()]
        speed = score("decoding speed", 100.0 + trial.seed)
        measured = [result_of("text", "text x", *scores), result_of("decode", "decoding", speed, trained=False)]
        measured[1]["settings"] = {"context": 64}
    else:
        measured = [mqar(16, 2, [recall] * 4), mqar(32, 4, [recall - 0.2, recall, recall - 0.2, recall])]
    evaluated = evaluation(*measured, parameters=1000 + (trial.track == "recall"))
    train = {"losses": [[1, 5.0], [2, 4.0]], "seconds": 1.0, "tokens": 10}
    return {
        "evaluation": evaluated,
        "train": train,
        "versions": {"torch": "x"},
        "machine": "m",
        "commit": None,
        "started": started,
        "ended": ended,
    }


def made(folder: Path, recalls: dict[str, float] = RECALLS, missing: tuple[str, ...] = ()) -> Store:
    study = parse_study(STUDY, "made-up.yaml")
    store = Store(folder)
    store.write_study(study, "made-up.yaml", "plait study run made-up.yaml")
    for index, trial in enumerate(trials(study)):
        if trial.key not in missing:
            store.begin(trial)
            store.finish(trial, result(trial, recalls[trial.key], 5.0 * index, 5.0 * index + 7))
    return store


def test_metrics_over_seeds_and_over_examples(tmp_path: Path) -> None:
    summary = summarise(made(tmp_path).folder)
    found = {one.key: one for one in summary.configurations}
    pure = found["gla pure"].metrics
    assert (pure["loss"].mean, pure["loss"].over, pure["loss"].n) == (pytest.approx(1.521), "seeds", 3)
    assert pure["loss"].high - 1.521 == pytest.approx(4.303 * 0.001 / math.sqrt(3), rel=1e-3)
    assert pure["bits_per_byte"].mean == pytest.approx(3.042)
    assert pure["ar_loss"].mean == pytest.approx(0.7605)
    assert "other_loss" not in pure  # no such tokens
    assert pure["recall@16x2"].mean == pytest.approx(0.4)
    assert pure["recall@32x4"].mean == pytest.approx(0.3)
    assert (pure["recall"].mean, pure["recall"].over, pure["recall"].n) == (pytest.approx(0.35), "samples", 4)
    assert (pure["recall"].low, pure["recall"].high) == (pytest.approx(0.3, abs=0.06), pytest.approx(0.4, abs=0.06))
    assert pure["decode@64"].mean == pytest.approx(101.0)
    hybrid = found["gla 3:1"]
    assert (hybrid.n_linear, hybrid.n_full, hybrid.full_layers) == (3, 1, [3])
    assert hybrid.parameters == {"lm": 1000, "recall": 1001}
    assert hybrid.seeds == {"lm": [0, 1, 2], "recall": [0]}
    assert list(hybrid.cache_bytes) == [32, 256]
    state = 3 * 2 * 4 * 8 * 4  # layers, heads, key and value channels of GLA, fp32
    assert hybrid.cache_bytes[256] == state + 2 * 256 * 16 * 2


def test_conclusions(tmp_path: Path) -> None:
    summary = summarise(made(tmp_path).folder)
    assert summary.guards[0].learnt
    assert summary.guards[0].accuracy == pytest.approx(0.92)  # mean of 0.97 and 0.87
    assert summary.recommendation.key == "gla 3:1"
    assert summary.pareto == ["gla pure", "gla 3:1", "transformer"]
    assert (summary.trials, summary.finished, len(summary.curves)) == (12, 12, 12)
    assert summary.curves[0].points == [(1, 5.0), (2, 4.0)]
    assert summary.seconds == 11 * 5 + 7  # twelve trials of 7 s, one begun every 5 s
    assert summary.claims == []  # a study judges nothing by itself


def test_guard_voids_the_recall_track(tmp_path: Path) -> None:
    summary = summarise(made(tmp_path, {**RECALLS, "transformer": 0.9}).folder)
    assert not summary.guards[0].learnt  # 0.85 of 0.9
    assert summary.recommendation.key is None
    assert "did not learn" in summary.recommendation.sentences[0]


def test_unfinished_study_says_so(tmp_path: Path) -> None:
    store = made(tmp_path, missing=("gla 3:1",))
    summary = summarise(store.folder)
    assert [one.key for one in summary.configurations] == ["transformer", "gla pure"]
    assert summary.finished == 8
    assert "has not finished" in summary.recommendation.sentences[1]
    without = summarise(made(tmp_path / "other", missing=("transformer",)).folder)
    assert without.guards[0].accuracy is None
    assert "no finished transformer" in without.guards[0].message
    empty = summarise(made(tmp_path / "empty", missing=tuple(LOSSES)).folder)
    assert (empty.configurations, empty.recommendation.key) == ([], None)


def test_compressors_and_counts_stand_beside_the_loss(tmp_path: Path) -> None:
    summary = summarise(made(tmp_path).folder)
    (text,) = summary.baselines
    assert (text.track, text.keys) == ("lm", ["transformer", "gla pure", "gla 3:1"])
    assert (text.bytes, text.gzip, text.xz, text.ngram, text.ngram_length) == (90, 4.5, 5.0, 3.02, 3)
    rows = [(row.name, round(row.bits, 3)) for row in standings(summary, text)]
    assert rows == [("transformer", 3.002), ("byte 3-gram", 3.02), ("gla pure", 3.042), ("gzip", 4.5), ("xz", 5.0)]
    assert verdict(summary, text) == "transformer beats byte 3-gram, the best of them. gla pure does not."
    better = text.model_copy(update={"ngram": 2.5})
    assert verdict(summary, better).startswith("No model beats byte 3-gram (2.500 bits per byte)")
    page = render(summary)
    assert "Is the loss better than counting bytes?" in page
    assert "Witten-Bell" in page

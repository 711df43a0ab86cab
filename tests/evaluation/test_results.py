"""Results are read through one reader, and compared only on the same samples."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from plait.cli.scores import print_results
from plait.errors import DataError
from plait.evaluation.baselines import compressed
from plait.evaluation.compare import compare
from plait.evaluation.results import digest, read_result, results_in
from plait.evaluation.score import SAMPLES, Score

SCORE = dataclasses.asdict(Score.ratio("bits per byte", [15.0, 25.0], [10, 10], more={SAMPLES: "same"}))
RESULT: dict[str, Any] = {
    "name": "text a.txt length=64",
    "kind": "text",
    "model": "a",
    "settings": {"text": "a.txt", "length": 64, "windows": 2},
}


def write(folder: Path, file: str = "x", drop: str = "", result: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A result with one score, ``changes`` of which are others."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{file}.json"
    score = {key: value for key, value in {**SCORE, **changes}.items() if key != drop}
    path.write_text(json.dumps({**RESULT, **(result or {}), "scores": [score]}), encoding="utf-8")
    return path


def test_a_score_is_all_nats_over_all_tokens() -> None:
    score = Score.ratio("loss", [2.0, 0.0, 9.0], [1, 0, 2])
    assert (score.score, list(score.per_sample), list(score.weights), score.n) == (
        11 / 3,
        [2.0, 0.0, 4.5],
        [1, 0, 2],
        3,
    )
    assert 2.0 <= score.low < 11 / 3 < score.high <= 4.5  # a resample of the empty sample alone counts for nothing
    alone = Score.ratio("loss", [2.0], [4])
    assert (alone.score, alone.low, alone.high, alone.interval) == (0.5, 0.5, 0.5, "none")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"drop": "score"}, "'scores.0.score' is missing"),
        ({"per_sample": [1, "x"]}, "'scores.0.per_sample.1' is wrong"),
    ],
)
def test_a_result_that_cannot_be_read_names_file_field_and_fix(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(DataError) as found:
        read_result(path)
    assert all(part in str(found.value) for part in (str(path), said, "delete the file and measure again"))


def test_other_json_files_are_passed_over_and_damaged_ones_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert [one["model"] for one in results_in(tmp_path)] == ["a"]
    (tmp_path / "y.json").write_text('{"name": ')
    with pytest.raises(DataError, match=r"y\.json.*delete the file"):
        results_in(tmp_path)


def test_texts_that_two_tokenizers_cut_differently_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path / "a", more={SAMPLES: digest(["one", "two"])})
    write(tmp_path / "b", more={SAMPLES: digest(["on", "e two"])})
    with pytest.raises(DataError, match="cut the samples differently"):
        compare(tmp_path / "a", tmp_path / "b")
    for folder in ("a", "b"):
        write(tmp_path / folder, "task", result={"name": "niah", "kind": "task", "settings": {"task": "niah"}})
    compared = compare(tmp_path / "a", tmp_path / "b")
    assert [one.name for one in compared.comparisons] == ["niah"]
    assert list(compared.refused) == ["text a.txt length=64"]


def test_samples_of_other_numbers_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", per_sample=[1.0])
    with pytest.raises(DataError, match="A has 2 samples and B has 1"):
        compare(tmp_path / "a", tmp_path / "b")


def test_losses_of_other_tokens_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", weights=[9.0, 11.0])
    with pytest.raises(DataError, match="different tokens"):
        compare(tmp_path / "a", tmp_path / "b")


def test_the_difference_weighs_samples_as_the_scores_do(tmp_path: Path) -> None:
    for name, sums in (("a", [1.0, 30.0, 2.0]), ("b", [2.0, 60.0, 2.0])):
        score = dataclasses.asdict(Score.ratio("loss", sums, [1, 20, 2]))
        write(tmp_path / name, **score)
    (found,) = compare(tmp_path / "a", tmp_path / "b").comparisons
    assert found.difference == pytest.approx(31 / 23)
    assert found.difference == pytest.approx(found.second - found.first)


def test_the_bits_per_byte_of_a_text_stand_beside_compressors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, more={**SCORE["more"], "baselines": compressed(b"a" * 800)})
    print_results([read_result(path)])
    said = capsys.readouterr().out
    assert "of the same 800 bytes: gzip" in said
    assert "The model is not better than gzip." in said

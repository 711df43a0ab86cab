"""Results are read through one reader, and compared only on the same samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plait.cli.evaluate_suites import print_scores
from plait.errors import DataError
from plait.evaluation.baselines import compressed
from plait.evaluation.compare import compare
from plait.evaluation.results import SAMPLES, digest, read_result, results_in

RESULT: dict[str, Any] = {
    "name": "text a.txt length=64",
    "model": "a",
    "spec": {"text": "a.txt", "length": 64, "windows": 2},
    "metric": "bits per byte",
    "score": 2.0,
    "low": 1.5,
    "high": 2.5,
    "per_sample": [1.5, 2.5],
}


def write(folder: Path, file: str = "x", **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{file}.json"
    content = {key: value for key, value in {**RESULT, **changes}.items() if value is not None}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_result_without_the_newer_fields_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = read_result(write(tmp_path))
    assert (result["interval"], result["chance"], result["more"]) == ("none", None, {})
    print_scores([result])
    assert "2.000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"score": None}, "'score' is missing"), ({"per_sample": [1, "x"]}, "'per_sample.1' is wrong")],
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
        write(tmp_path / folder, "task", name="niah", spec={"task": "NeedleInHaystack"})
    compared = compare(tmp_path / "a", tmp_path / "b")
    assert [one.name for one in compared.comparisons] == ["niah"]
    assert list(compared.refused) == ["text a.txt length=64"]


def test_results_that_do_not_say_their_texts_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b")
    with pytest.raises(DataError, match="does not say which texts"):
        compare(tmp_path / "a", tmp_path / "b")


def test_samples_of_other_numbers_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path / "a", spec={"task": "x"})
    write(tmp_path / "b", spec={"task": "x"}, per_sample=[1.0])
    with pytest.raises(DataError, match="A has 2 samples and B has 1"):
        compare(tmp_path / "a", tmp_path / "b")


def test_the_bits_per_byte_of_a_text_stand_beside_compressors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"perplexity": {"bits_per_byte": 2.0}, "baselines": compressed(b"a" * 800)}
    print_scores([read_result(write(tmp_path, more=more))])
    said = capsys.readouterr().out
    assert "of the same 800 bytes: gzip" in said
    assert "The model is not better than gzip." in said

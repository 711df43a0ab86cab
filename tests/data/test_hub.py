"""Hub corpora, from local folders that ``datasets`` loads as it loads a hub data set."""

from __future__ import annotations

import json
import sys
from itertools import chain
from pathlib import Path

import pytest

from plait.data.corpora import open_corpus
from plait.data.corpus import SPLITS
from plait.errors import DataError


@pytest.fixture(autouse=True)
def _needs_datasets() -> None:
    pytest.importorskip("datasets", reason="needs the package datasets")


def write_rows(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(texts)))


def read(spec: str, split: str, field: str = "text") -> list[str]:
    return [text for _, text in open_corpus(spec, field).documents(split)]


def test_own_splits_are_used_as_they_are(tmp_path: Path) -> None:
    for split in SPLITS:
        write_rows(tmp_path / "set" / f"{split}.jsonl", [f"{split} {i}" for i in range(25)])
    for split in SPLITS:
        assert read(f"hf:{tmp_path / 'set'}", split) == [f"{split} {i}" for i in range(25)]


def test_lacking_splits_come_from_the_training_rows(tmp_path: Path) -> None:
    texts = [f"row {i}" for i in range(100)]
    write_rows(tmp_path / "set" / "train.jsonl", texts)
    found = {split: read(f"hf:{tmp_path / 'set'}", split) for split in SPLITS}
    assert [len(found[split]) for split in SPLITS] == [90, 5, 5]
    assert sorted(chain(*found.values())) == sorted(texts)


def test_only_the_lacking_split_is_taken(tmp_path: Path) -> None:
    write_rows(tmp_path / "set" / "train.jsonl", [f"row {i}" for i in range(100)])
    write_rows(tmp_path / "set" / "test.jsonl", ["a test"])
    found = {split: read(f"hf:{tmp_path / 'set'}", split) for split in SPLITS}
    assert [len(found[split]) for split in SPLITS] == [95, 5, 1]
    assert not set(found["train"]) & set(found["validation"])


def test_configuration_after_the_colon(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_rows(folder / "one" / "train.jsonl", ["first"] * 20)
    write_rows(folder / "two" / "train.jsonl", ["second"] * 20)
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/train.jsonl\n" for name in ("one", "two"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert set(read(f"hf:{folder}:two", "train")) == {"second"}
    with pytest.raises(DataError, match="cannot be loaded"):
        read(f"hf:{folder}:three", "train")


def test_missing_field_names_those_found(tmp_path: Path) -> None:
    write_rows(tmp_path / "set" / "train.jsonl", ["row"] * 20)
    with pytest.raises(DataError, match=r"row 0 has no field 'txt'; found text, id. Did you mean 'text'\?"):
        read(f"hf:{tmp_path / 'set'}", "train", "txt")
    with pytest.raises(DataError, match="field 'id' holds int"):
        read(f"hf:{tmp_path / 'set'}", "train", "id")


def test_no_training_split(tmp_path: Path) -> None:
    write_rows(tmp_path / "set" / "test.jsonl", ["row"])
    with pytest.raises(DataError, match="no split 'train'; found test"):
        read(f"hf:{tmp_path / 'set'}", "train")


def test_unknown_name_is_one_sentence() -> None:
    with pytest.raises(DataError, match="nobody/nothing, and a data set of that name cannot be downloaded"):
        read("hf:nobody/nothing", "train")


def test_without_datasets_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install "):
        open_corpus("hf:some/name")

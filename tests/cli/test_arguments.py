"""Wrong arguments are told before torch is loaded, and names that look like paths never ask the hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plait.errors import OptionError
from plait.hub import looks_like_path

WRONG = [
    ("generate some/where/else", "There is no folder some/where/else."),
    ("generate model.safetensors", "There is no folder model.safetensors."),
    ("generate nobody/nothing", "a model of that name cannot be downloaded"),
    ("generate file", "file is a file; name the folder of a model."),
    ("generate pipe", "pipe is a pipe or a device"),
    ("generate link", "link is a link to"),
    ("generate fixture:recall-smal", "Did you mean 'recall-small'?"),
    ("generate fixture:recall-small --seed -1", "--seed -1 must be between"),
    ("run fixture:recall-small --policy h2oo --prompt a", "Did you mean 'h2o'?"),
    ("run fixture:recall-small --policy h2o --prompt-file pipe", "pipe is a pipe"),
    ("run fixture:recall-small --policy h2o --prompt a --option a=[", "not valid YAML"),
    ("frontier fixture:recall-small --policies h2o,snapkw", "Did you mean 'snapkv'?"),
    ("eval fixture:recall-small --tasks mqarr", "Did you mean 'mqar'?"),
    ("eval fixture:recall-small --suite recal", "Did you mean 'recall'?"),
    ("eval fixture:recall-small --harness piqaa", "Did you mean 'piqa'?"),
    ("train run.yaml --set evaluate.measure=[{tasks:[parrity]}]", "Did you mean 'parity'?"),
    ("train run.yaml --set evaluate.measure=[{harness:[piqaa]}]", "Did you mean 'piqa'?"),
    ("study run study.yaml", "Did you mean 'state'?"),
    ("frontier fixture:recall-small --tasks niaa", "Did you mean 'niah'?"),
    ("eval fixture:recall-small --suite lm --data-dir file", "is a file; name a folder."),
    ("eval fixture:recall-small --corpus text:none.txt", "there is no file or folder none.txt"),
    ("convert fixture:recall-small file", "file is a file; name a folder."),
    ("convert fixture:recall-small new --recipe hallo", "Did you mean 'halo'?"),
    ("plan --ratio 1:3", "write pure, full or R:1"),
    ("plan --mixer glaa", "Did you mean 'gla'?"),
    ("probe fixture:recall-small logit_growt", "Did you mean 'logit_growth'?"),
    ("eval fixture:recall-small --field body", "--field goes with --corpus"),
    ("eval fixture:recall-small --policy h2o --policy-option heavy", "--policy-option 'heavy'"),
    ("eval fixture:recall-small --tasks x-y-z", "niah_multiquery, niah_multivalue,"),
    ("show gla --kind mixers", "Did you mean 'mixer'?"),
    ("train folder", "folder is a folder; name a file."),
    ("train run.yaml --set steps=3", "Did you mean 'training.steps'?"),
    ("train run.yaml --set training.step=3", "Did you mean 'training.steps'?"),
    ("train run.yaml --set data.corpus=text:none", "there is no file or folder none"),
    ("train run.yaml --out file/below", "file is a file; name a folder."),
    ("explain run.yaml --set model.ratio=1:3", "model.ratio = '1:3'"),
]


def test_mistakes_are_told_before_torch_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "run.yaml").write_text("data: {corpus: python-stdlib}\n", encoding="utf-8")
    track = "{kind: task, data: {task: parity}, evaluate: {measure: [{suite: stat}]}}"
    study = f"name: x\ntracks: {{state: {track}}}\ngrid: {{mixers: [gla], ratios: [pure]}}\n"
    (tmp_path / "study.yaml").write_text(study, encoding="utf-8")
    os.mkfifo(tmp_path / "pipe")
    code = """
import io, json, sys
from contextlib import redirect_stderr
from plait.cli.app import main
said = []
for words in json.loads(sys.argv[1]):
    with redirect_stderr(io.StringIO()) as error:
        try:
            main(words.split())
        except SystemExit as end:
            said.append((end.code, error.getvalue(), "torch" in sys.modules))
print(json.dumps(said))
"""
    words = json.dumps([words for words, _ in WRONG])
    done = subprocess.run([sys.executable, "-c", code, words], capture_output=True, text=True, cwd=tmp_path, check=True)
    said = json.loads(done.stdout)
    assert len(said) == len(WRONG)
    for (words, message), (status, error, torch) in zip(WRONG, said, strict=True):
        assert (status, torch, error.count("\n")) == (1, False, 1), (words, error)
        assert message in error, (words, error)


@pytest.mark.parametrize(
    ("name", "path"),
    [("./a", True), ("~/a", True), ("/a", True), ("a/b/c", True), ("a\\b", True), ("a.json", True), ("a/", True)]
    + [("owner/model", False), ("gpt2", False), ("owner/model-1.5b", False)],
)
def test_paths_are_told_from_names(name: str, path: bool) -> None:
    assert looks_like_path(name) == path


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    from plait import hub

    tried = []

    def refuse(place: tuple[str, int], timeout: float) -> None:
        tried.append(place)
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_reached", {})
    monkeypatch.setattr("socket.create_connection", refuse)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    for _ in range(2):
        with pytest.raises(OptionError, match=r"cannot be reached \(Network is unreachable\)"):
            hub.check_name("nobody/nothing")
    assert tried == [("huggingface.co", 443)]

"""Code that a model's folder brings runs only where a user said so, whatever stdin answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import plait
from plait.errors import OptionError

CODE = """
from pathlib import Path
Path({mark!r}).write_text("ran", encoding="utf-8")
from transformers import PreTrainedConfig
class Config(PreTrainedConfig):
    model_type = "stranger"
"""


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """A folder whose configuration, model and tokenizer point at its own code, which leaves a mark."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "code.py").write_text(CODE.format(mark=str(tmp_path / "mark")), encoding="utf-8")
    names = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model", "AutoTokenizer": ["code.T", None]}
    content = {"model_type": "stranger", "auto_map": names, "architectures": ["Model"]}
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_loading_runs_no_code(stranger: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"config\.json"):
        plait.load(stranger)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(("flags", "runs"), [([], False), (["--trust-remote-code"], True)])
def test_an_answer_on_stdin_turns_nothing_on(stranger: Path, tmp_path: Path, flags: list[str], runs: bool) -> None:
    env = os.environ | {"HF_HOME": str(tmp_path / "hub"), "XDG_STATE_HOME": str(tmp_path / "state")}
    arguments = ["generate", str(stranger), "--prompt", "x", *flags]
    done = subprocess.run(
        [sys.executable, "-m", "plait.cli.app", *arguments], input="y\n" * 9, capture_output=True, text=True, env=env
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert (tmp_path / "mark").exists() == runs

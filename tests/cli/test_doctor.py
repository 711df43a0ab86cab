"""``plait doctor``: what is on, what is off and why."""

from __future__ import annotations

import json
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from plait import ops
from plait.cli import app as front
from plait.cli import doctor
from plait.extras import install_command
from plait.ops import BackendStatus

ROOT = Path(__file__).parents[2]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        front.main(["doctor", *arguments])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_findings_are_those_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(capsys, "--json"))
    assert found["versions"]["torch"] == version("torch")
    assert found["versions"]["python"] == sys.version.split()[0]
    assert found["threads"] == torch.get_num_threads()
    assert bool(found["devices"]["cuda"]) == torch.cuda.is_available()
    assert found["chosen"]["cpu"][0] == ops.choose("cpu")[0]
    for entry in found["backends"]:
        assert entry["reason"]
        assert entry["available"] or entry["fix"]
    assert "ceilings" not in found


def test_a_backend_that_is_off_comes_with_reason_and_mend(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = BackendStatus("fla", False, "flash-linear-attention is not installed", 'pip install "plait[gpu]"')
    monkeypatch.setattr(ops, "backends", lambda: [status])
    line = next(line for line in run(capsys).splitlines() if line.startswith("fla"))
    assert line.split(maxsplit=2) == ["fla", "off", f"{status.reason}  {status.fix}"]


def test_extras_are_those_of_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(extras) - {"dev", "docs"}
    for extra, package in doctor.EXTRAS.items():
        assert any(requirement.startswith(package) for requirement in extras[extra])


def test_an_extra_that_is_missing_comes_with_its_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", {"hub": "no-such-distribution"})
    line = next(line for line in run(capsys).splitlines() if line.startswith("hub"))
    assert line.split(maxsplit=2) == ["hub", "off", install_command("hub")]


@pytest.mark.parametrize(("fla", "cuda", "warned"), [(True, False, True), (True, True, False), (False, False, False)])
def test_fla_without_cuda_is_warned_about(fla: bool, cuda: bool, warned: bool) -> None:
    found = doctor.warnings(fla=fla, cuda=cuda, unusable=None)
    assert bool(found) == warned
    if warned:
        assert "pip uninstall flash-linear-attention" in found[0]


def test_a_build_for_a_device_that_is_not_here_is_named() -> None:
    (warning,) = doctor.warnings(fla=False, cuda=False, unusable="cuda")
    assert "built for cuda" in warning
    assert "--index-url https://download.pytorch.org/whl/cpu" in warning


def test_measured_ceilings_are_rates(capsys: pytest.CaptureFixture[str]) -> None:
    ceilings = json.loads(run(capsys, "--measure", "--json"))["ceilings"]
    assert set(ceilings) == {"matmul GFLOP/s", "copy GB/s"}
    assert all(rate > 0.1 for rate in ceilings.values())

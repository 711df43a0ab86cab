"""What trials ask of machines, and what is said before anything starts; no Ray is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plait.errors import BackendUnavailable, OptionError, StudyError
from plait.study.cluster import _launches, connected
from plait.study.cluster_needs import Machine, check_needs
from plait.study.file import parse_study
from plait.study.resources import Resources
from plait.study.runner import run_trials
from plait.study.store import Store
from plait.study.trials import Trial, trials

STUDY: dict[str, Any] = {
    "name": "small",
    "tracks": {"recall": {"kind": "recall", "data": {"task": "mqar"}}},
    "grid": {"mixers": ["gla"], "ratios": ["pure", "1:1"]},
}


def found(**values: Any) -> list[Trial]:
    return trials(parse_study({**STUDY, **values}, "small.yaml"))


def test_needs_change_no_name_but_processes_do() -> None:
    plain = [trial.hash for trial in found()]
    assert [trial.hash for trial in found(resources={"cpus": 8, "gpus": 2, "retries": 0})] == plain
    assert not set(plain) & {trial.hash for trial in found(resources={"processes": 2})}


def test_needs_of_some_points_only() -> None:
    wide = {"when": {"model.ratio": "1:1"}, "set": {"resources.gpus": 4}}
    asked = {trial.key: trial.resources for trial in found(resources={"cpus": 2}, overrides=[wide])}
    assert asked == {
        "transformer": Resources(cpus=2),
        "gla pure": Resources(cpus=2),
        "gla 1:1": Resources(cpus=2, gpus=4),
    }
    wrong = {"when": {"model.ratio": "1:1"}, "set": {"resources.gpu": 4}}
    with pytest.raises(OptionError, match=r"unknown key 'gpu' \(value 4\). Did you mean 'gpus'"):
        found(overrides=[wrong])


@pytest.mark.parametrize(
    ("needs", "machines", "several", "fits"),
    [
        ({"cpus": 4}, [Machine(4, 0)], True, True),
        ({"cpus": 5}, [Machine(4, 0), Machine(4, 0)], True, False),
        ({"gpus": 1}, [Machine(64, 0), Machine(1, 1)], True, True),
        ({"cpus": 2, "gpus": 1}, [Machine(64, 0), Machine(1, 1)], True, False),
        ({"processes": 4, "gpus": 2}, [Machine(8, 8)], False, True),
        ({"processes": 4, "gpus": 2}, [Machine(8, 4), Machine(8, 4)], True, True),
        ({"processes": 4, "gpus": 2}, [Machine(8, 4), Machine(8, 4)], False, False),
        ({"processes": 4, "gpus": 2}, [Machine(8, 5), Machine(8, 3)], True, False),  # 2 + 1 processes
        ({}, [], True, False),
    ],
)
def test_what_fits(needs: dict[str, int], machines: list[Machine], several: bool, fits: bool) -> None:
    asked = found(resources=needs)
    if fits:
        check_needs(asked, machines, several)
    else:
        with pytest.raises(StudyError, match=r"'recall \| transformer \| seed 0' asks for"):
            check_needs(asked, machines, several)


def test_one_launch_for_each_machine() -> None:
    places = [
        {"node": "b", "address": "10.0.0.2", "port": 4000, "gpus": ("3",)},
        {"node": "a", "address": "10.0.0.1", "port": 5000, "gpus": ("0",)},
        {"node": "b", "address": "10.0.0.2", "port": 4001, "gpus": ("1",)},
    ]
    (first, there), (second, here) = _launches(places)
    assert (first, there.processes, there.rank, there.gpus) == (0, 2, 0, ("3", "1"))
    assert (second, here.processes, here.rank, here.gpus) == (1, 1, 1, ("0",))
    assert {(one.machines, one.address, one.port) for one in (there, here)} == {(2, "10.0.0.2", 4000)}


def test_several_processes_need_ray(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"asks for 2 processes.*--cluster local"):
        run_trials(Store(tmp_path), found(resources={"processes": 2}), workers=1)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plait.study.cluster.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"pip install "), connected("auto"):
        pass


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray cluster at '127.0.0.1:1'.*ray start --head"),
        ("nonsense", "write auto, local or HOST:PORT"),
        ("ray://127.0.0.1:10001", "Ray Client is not supported"),
    ],
)
def test_wrong_address_is_said_at_once(address: str, message: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(StudyError, match=message), connected(address):
        pass

"""The front door: start-up time, what is imported, errors, exit statuses."""

from __future__ import annotations

import errno
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from plait import __version__
from plait.cli import app as front
from plait.errors import PlaitError


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def seconds(*arguments: str) -> float:
    """Processor time of a Python call: start-up waits for nothing, so on an idle machine it is the time that passes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def beyond_start(*arguments: str, turns: int = 7) -> float:
    """Best time of a Python call beyond the best time of an empty one, in turns: other processes only add."""
    empty, full = [], []
    for _ in range(turns):
        empty.append(seconds("-c", "pass"))
        full.append(seconds(*arguments))
    return min(full) - min(empty)


def test_importing_plait_is_quick() -> None:
    assert beyond_start("-c", "import plait") < 0.1


def test_help_is_quick() -> None:
    assert beyond_start("-m", "plait.cli.app", "--help") < 0.3


@pytest.mark.parametrize("code", ["import plait", "from plait.cli.app import main; main(['--help'])"])
def test_heavy_packages_are_not_loaded(code: str) -> None:
    report = "import atexit, sys; atexit.register(lambda: print(sorted(sys.modules), file=sys.stderr))\n"
    result = run("-c", report + code)
    loaded = {name.partition(".")[0] for name in eval(result.stderr)}
    assert "plait" in loaded
    assert not loaded & {"torch", "transformers", "numpy", "pydantic", "plotly", "accelerate"}


def test_plait_loads_its_lazy_names_and_refuses_others() -> None:
    import plait

    assert plait.layer_plan("gla", "1:1", layers=2) == ["gla", "attention"]
    with pytest.raises(AttributeError, match="no attribute 'layer_plann'"):
        plait.layer_plann  # noqa: B018


@pytest.mark.parametrize("name", front.COMMANDS)
def test_every_command_of_the_table_exists_and_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module, summary = front.COMMANDS[name]
    loaded = import_module(module)
    assert hasattr(loaded, "app") or callable(loaded.command)
    with pytest.raises(SystemExit) as end:
        front.main([name, "--help"])
    assert end.value.code == 0
    assert f"Usage: plait {name}" in capsys.readouterr().out
    assert len(summary) <= 66, "longer lines are cut in an 80-column help page"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        front.main(["--version"])
    assert (end.value.code, capsys.readouterr().out) == (0, f"plait {__version__}\n")


def test_unknown_command_names_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        front.main(["docter"])
    assert end.value.code == 2
    assert "Did you mean 'doctor'?" in capsys.readouterr().err


def test_wrong_option_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        front.main(["list", "--kinds", "mixer"])
    assert end.value.code == 2
    assert "--kinds" in capsys.readouterr().err


def test_an_error_of_plait_is_one_sentence_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        front.main(["list", "--kind", "mixr"])
    printed = capsys.readouterr()
    assert (end.value.code, printed.out) == (1, "")
    assert printed.err == "plait: The catalogue has no kind 'mixr'. Did you mean 'mixer'?\n"


@pytest.fixture
def fails_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[BaseException], None]:
    """Makes ``plait list`` raise; logs go below ``tmp_path``."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def use(error: BaseException) -> None:
        def broken(kind: str | None = None) -> list:
            raise error

        monkeypatch.setattr("plait.catalog.methods", broken)

    return use


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero."),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "/data/x: No space left on device. Free space"),
        (OSError(errno.EROFS, "Read-only file system", "/data"), "/data: Read-only file system. Choose a folder"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), "a/b: Not a directory. A part of the path"),
        (MemoryError(), "Out of memory"),
        (RuntimeError("first line\nsecond line"), "RuntimeError: first line."),
    ],
)
def test_an_unforeseen_error_is_one_sentence_and_a_log(
    error: Exception,
    words: str,
    fails_with: Callable[[BaseException], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fails_with(error)
    with pytest.raises(SystemExit) as end:
        front.main(["list"])
    printed = capsys.readouterr()
    assert (end.value.code, printed.out, printed.err.count("\n")) == (1, "", 1)
    assert printed.err.startswith(f"plait: {words}")
    (log,) = (tmp_path / "state" / "plait" / "errors").glob("*.log")
    assert f"The traceback is in {log}." in printed.err
    content = log.read_text(encoding="utf-8")
    assert content.startswith("plait list\n")
    assert "Traceback (most recent call last)" in content
    assert type(error).__name__ in content


def test_a_log_that_cannot_be_written_is_no_further_error(
    fails_with: Callable[[BaseException], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").write_text("a file in place of the folder")
    (tmp_path / "temporary").write_text("")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "temporary"))
    fails_with(ValueError("no"))
    with pytest.raises(SystemExit) as end:
        front.main(["list"])
    assert end.value.code == 1


def test_debugging_shows_the_traceback(
    fails_with: Callable[[BaseException], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_with(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        front.main(["list", "--debug"])
    monkeypatch.setenv("PLAIT_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        front.main(["list"])


def test_a_message_is_never_longer_than_2000_characters(
    fails_with: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(PlaitError("file.yaml: " + "x" * 10_000_000 + " Fix: shorten it."))
    with pytest.raises(SystemExit):
        front.main(["list"])
    said = capsys.readouterr().err
    assert len(said) < 2000
    assert said.startswith("plait: file.yaml: x")
    assert said.endswith("Fix: shorten it.\n")


@pytest.mark.parametrize("target", [">&-", "| true", "> /dev/full"])
def test_output_that_nobody_takes_leaves_no_traceback(target: str) -> None:
    script = f"{sys.executable} -m plait.cli.app list --json {target}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr
    assert result.stderr.count("\n") == (target == "> /dev/full")


def test_ctrl_c_is_status_130_without_a_traceback(tmp_path: pytest.TempPathFactory) -> None:
    code = (
        "import time\nimport plait.cli.list_methods as module\nfrom plait.cli.app import main\n"
        "def command():\n    print('started', flush=True); time.sleep(60)\n"
        "module.command = command\nmain(['list'])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_list_is_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    from plait import catalog

    with pytest.raises(SystemExit) as end:
        front.main(["list", "--kind", "mixer", "--json"])
    assert end.value.code == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == catalog.names("mixer")
    with pytest.raises(SystemExit):
        front.main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(catalog.methods())
    assert lines[1].split()[:2] == ["attention", "mixer"]

"""The common model tests of transformers, out of the source distribution of the installed version.

The wheel has no tests. The source distribution has ``tests/test_modeling_common.py``, without two modules that it
imports for base classes (export and generation): where they are missing, empty classes stand in.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import subprocess
import sys
import tarfile
import types
from pathlib import Path

import pytest
import transformers
from filelock import FileLock

PACKAGE = "transformers_common_suite"
#: Base classes whose modules the source distribution leaves out.
LEFT_OUT = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}


@functools.cache
def folder() -> Path:
    """``tests/`` of the installed transformers, fetched once into the user's cache; skips where it cannot be had."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "plait" / "tests"
    cache.mkdir(parents=True, exist_ok=True)
    name = f"transformers-{transformers.__version__}"
    wanted = cache / name / "tests"
    with FileLock(cache / f"{name}.lock"):
        if not wanted.is_dir():
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
            command += ["--dest", str(cache), f"transformers=={transformers.__version__}"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
            archive = cache / f"{name}.tar.gz"
            if done.returncode or not archive.is_file():
                reason = (done.stderr.strip().splitlines() or ["no archive"])[-1]
                pytest.skip(f"the source distribution of {name}, which has the suite, cannot be fetched: {reason}")
            with tarfile.open(archive) as file:
                inside = [m for m in file.getmembers() if m.name.startswith(f"{name}/tests/")]
                file.extractall(cache, members=inside, filter="data")
            archive.unlink()
    return wanted


def require() -> Path:
    """The folder of the suite; skips where it cannot be had."""
    pytest.importorskip("parameterized", reason="the common suite of transformers needs parameterized")
    tests = folder()
    if not (tests / "test_modeling_common.py").is_file():
        pytest.skip(f"the source distribution of transformers {transformers.__version__} has no test_modeling_common")
    return tests


@functools.cache
def common_tests() -> types.ModuleType:
    """The module ``test_modeling_common``; importing it needs a process where pytest is not strict about marks."""
    tests = require()
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(tests)]
    sys.modules[PACKAGE] = package
    for name, base in LEFT_OUT.items():
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(f"{PACKAGE}.{name}")
            continue
        parent, _, _ = name.partition(".")
        sys.modules.setdefault(f"{PACKAGE}.{parent}", types.ModuleType(f"{PACKAGE}.{parent}"))
        module = types.ModuleType(f"{PACKAGE}.{name}")
        setattr(module, base, type(base, (), {}))
        sys.modules[f"{PACKAGE}.{name}"] = module
    return importlib.import_module(f"{PACKAGE}.test_modeling_common")

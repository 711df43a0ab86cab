"""Where a result comes from: versions, machine and the state of plait's own source. Every result carries it."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

#: Packages that decide a result's numbers.
PACKAGES = ("plait", "torch", "transformers", "accelerate", "tokenizers", "numpy")


def provenance(*packages: str) -> dict[str, Any]:
    """What stands in every result: ``versions``, ``machine`` and ``commit``.

    Args:
        packages: further ones that decided this result.
    """
    return {"versions": versions(*packages), "machine": machine(), "commit": commit()}


def versions(*packages: str) -> dict[str, str]:
    """Versions of :data:`PACKAGES` and of further ``packages``, all of which are installed."""
    return {name: version(name) for name in (*PACKAGES, *packages)}


def machine() -> str:
    """System, processor, cores, threads, accelerator and Python: speed and last digits depend on them."""
    parts = [f"{platform.system()} {platform.machine()}", processor(), f"{os.cpu_count()} cores"]
    parts += [f"{threads()} threads", *accelerators(), f"Python {platform.python_version()}"]
    return ", ".join(part for part in parts if part)


def processor() -> str:
    """The processor's name, which :mod:`platform` does not know on Linux."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def threads() -> int:
    """Threads that one operation of this process uses."""
    import torch

    return torch.get_num_threads()


def accelerators() -> list[str]:
    """Names of the CUDA devices that this process sees."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


@cache
def commit() -> str | None:
    """Git's commit of plait's source, with ``+changes`` where files differ from it; None outside a clone."""
    clone = Path(__file__).parents[2]
    if not (clone / ".git").exists():  # installed: the folder may lie in a repository of somebody else's
        return None
    command = ["git", "-C", str(clone), "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+changes"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):  # no git here, or a clone that git will not read
        return None
    return answer.stdout.strip()

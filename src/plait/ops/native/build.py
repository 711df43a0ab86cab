"""Compiles the CPU kernels beside this file: ``python -m plait.ops.native.build``.

Installing plait does this by itself where a C compiler is found. The result is plain C behind ctypes: it depends on no
version of Python or PyTorch. Stands on the standard library alone, since the package's build runs it. The variable
``PLAIT_KERNELS`` names another folder for the compiled files, and ``PLAIT_CFLAGS`` further options of the compiler.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCES = ("attention.c", "rows.c", "softmax.c")
FLAGS = ["-O3", "-std=gnu11", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
#: Instruction sets by the names of ``torch.backends.cpu.get_cpu_capability()``; the first that fits is used.
LEVELS = {
    "AVX512": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma", "-mprefer-vector-width=512"],
    "AVX2": ["-mavx2", "-mfma"],
    "DEFAULT": [],
}


def levels() -> list[str]:
    """Instruction sets that this kind of machine may have."""
    return list(LEVELS) if platform.machine().lower() in ("x86_64", "amd64") else ["DEFAULT"]


def compiled() -> Path:
    """Where the compiled files lie."""
    return Path(os.environ.get("PLAIT_KERNELS") or FOLDER)


def library(level: str) -> Path:
    """The compiled file for an instruction set. Its name changes with the sources: an outdated one is never loaded."""
    digest = hashlib.sha256()
    for path in sorted([*FOLDER.glob("*.c"), *FOLDER.glob("*.h")]):
        digest.update(path.read_bytes())
    return compiled() / f"kernels-{digest.hexdigest()[:12]}-{level.lower()}.so"


def compiler() -> list[str] | None:
    """The C compiler's command: ``CC`` if it is set, else the first of cc, gcc and clang; None where there is none."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    found = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    return None if found is None else [found]


def build() -> str | None:
    """Compile the kernels for every instruction set of this kind of machine.

    Returns:
        None when all were compiled, else the reason why not.
    """
    if sys.platform == "win32":
        return "they are not built on Windows"
    command = compiler()
    if command is None:
        return "no C compiler was found (cc, gcc or clang)"
    own = shlex.split(os.environ.get("PLAIT_CFLAGS", ""))
    for old in compiled().glob("kernels-*.so"):
        old.unlink()
    for level in levels():
        target = library(level)
        unfinished = target.with_suffix(f".{os.getpid()}")
        sources = [str(FOLDER / name) for name in SOURCES]
        try:
            subprocess.run(
                [*command, *FLAGS, *LEVELS[level], *own, "-o", str(unfinished), *sources, "-lm", "-lpthread"],
                check=True,
                capture_output=True,
                text=True,
            )
        except OSError as error:
            return f"{shlex.join(command)} could not be run: {error}"
        except subprocess.CalledProcessError as error:
            unfinished.unlink(missing_ok=True)
            return f"{shlex.join(command)} failed for {level}: {error.stderr.strip() or 'no message'}"
        unfinished.replace(target)
    return None


if __name__ == "__main__":
    reason = build()
    if reason:
        sys.exit(f"The CPU kernels were not compiled: {reason}.")
    print(f"Compiled for {', '.join(levels())} in {compiled()}")

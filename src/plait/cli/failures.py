"""What a command says when something fails that plait did not foresee: one sentence, and a file with the traceback."""

from __future__ import annotations

import errno
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from plait.errors import PlaitError

#: A message is never longer, whatever a file or a library puts into it.
LONGEST = 1900

_FIXES = {
    errno.ENOSPC: "Free space there, or choose another folder; then run the same command to continue.",
    errno.EDQUOT: "Your quota is used up: free space, or choose another folder.",
    errno.EROFS: "Choose a folder that can be written to.",
    errno.EACCES: "Change its permissions, or choose another place.",
    errno.EPERM: "Change its permissions, or choose another place.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ENOTDIR: "A part of the path is a file: choose another folder.",
    errno.EISDIR: "It is a folder, and a file is needed: choose another name.",
    errno.EEXIST: "It exists already: choose another name.",
    errno.ENOENT: "Check the name.",
    errno.EMFILE: "Too many files are open: raise the limit with ulimit -n.",
}


def sentence(error: BaseException) -> str:
    """What went wrong, and the fix where one is known.

    Args:
        error: any exception.
    """
    if isinstance(error, PlaitError):
        text = str(error)
    elif isinstance(error, OSError) and error.strerror:
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        place = f"{' and '.join(names)}: " if names else ""
        fix = _FIXES.get(error.errno or 0, "")
        text = f"{place}{error.strerror}.{' ' + fix if fix else ''}"
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        text = "Out of memory. Use a smaller model, batch or context, or a machine with more memory."
    else:
        lines = [line.strip() for line in str(error)[:LONGEST].splitlines() if line.strip()]
        text = f"{type(error).__name__}{': ' + lines[0][:400] if lines else ''}"
        text = text if text.endswith((".", "!", "?")) else f"{text}."
    return shortened(text)


def shortened(text: str) -> str:
    """``text``, cut in its middle where it is longer than :data:`LONGEST`: names stand first, fixes last."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 400]} ... {text[-380:]}"


def write_log(error: BaseException, arguments: Sequence[str]) -> Path | None:
    """Write the traceback to a file of its own; None where no place can be written to.

    Args:
        error: what was raised.
        arguments: of the command line.
    """
    from plait import __version__

    head = [
        f"plait {' '.join(arguments)}"[:4000],
        f"plait {__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"in {Path.cwd()}" if Path(".").exists() else "in a folder that is gone",
    ]
    trace = "".join(traceback.format_exception(error))
    content = "\n".join(
        [*head, "", trace if len(trace) < 1_000_000 else trace[:500_000] + "\n...\n" + trace[-500_000:]]
    )
    name = f"{time.strftime('%Y-%m-%d-%H%M%S')}-{os.getpid()}.log"
    for folder in (_state() / "plait" / "errors", Path(tempfile.gettempdir())):
        path = folder / name if folder.name == "errors" else folder / f"plait-{name}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8", errors="replace")
        except OSError:  # a full or read-only disk: the next place, and at last none
            continue
        return path
    return None


def _state() -> Path:
    """The user's folder for logs, by the rule of the system."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or tempfile.gettempdir())
    if sys.platform == "darwin":
        return Path(os.path.expanduser("~/Library/Logs"))
    return Path(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"))

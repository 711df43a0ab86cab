"""Names on the Hugging Face hub: told from paths, and asked for only where the hub can answer.

The hub's client asks again and again, for two minutes, where no network is; and a mistyped path looks like a name. Both
are found here first, before anything is loaded.
"""

from __future__ import annotations

import os
import re
import socket
from contextvars import ContextVar
from pathlib import Path
from urllib.parse import urlsplit

from plait.errors import OptionError, PlaitError
from plait.files import QUOTED, quoted, reason, regular_file

#: Suffixes of files; no name on the hub that a user means ends in one.
_SUFFIXES = {
    ".bin",
    ".csv",
    ".gguf",
    ".gz",
    ".json",
    ".jsonl",
    ".md",
    ".parquet",
    ".pt",
    ".pth",
    ".safetensors",
    ".tar",
    ".txt",
    ".yaml",
    ".yml",
    ".zip",
    ".zst",
}
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_PATIENCE = 3.0  # seconds for one connection

#: Whether Python code that a model's folder brings may run; ``plait --trust-remote-code`` turns it on for one call.
trust_remote_code: ContextVar[bool] = ContextVar("trust_remote_code", default=False)

_reached: dict[str, str | None] = {}


def trusted(given: bool | None) -> bool:
    """Whether code of a model's folder may run.

    Args:
        given: what the caller says; None: what the command line says, which is no unless ``--trust-remote-code``.
    """
    return trust_remote_code.get() if given is None else given


def looks_like_path(name: str) -> bool:
    """Whether a user means a place on the disk: never asked for on the hub.

    Args:
        name: what the user wrote.
    """
    parts = Path(name).parts
    return (
        name.startswith((".", "~", "/", "\\"))
        or "\\" in name
        or name.endswith("/")
        or len(parts) > 2
        or Path(name).suffix.lower() in _SUFFIXES
        or (len(parts) == 2 and Path(parts[0]).is_dir())
    )


def check_name(name: str, what: str = "model", kind: type[PlaitError] = OptionError) -> None:
    """Raise unless the hub can be asked for ``name``, or holds it in its cache on this disk.

    Args:
        name: no folder on this disk.
        what: ``model``, ``tokenizer`` or ``data set``, for messages.
        kind: the error to raise.

    Raises:
        PlaitError: it looks like a path or cannot be a name; or it is not in the cache and the hub cannot be reached.
    """
    shown = name if len(name) <= QUOTED and name.isprintable() else quoted(name)
    if os.path.lexists(name) and not os.path.isdir(name):
        regular_file(Path(name), kind)  # a broken link, a pipe
        raise kind(f"{shown} is a file; name the folder of a {what}.")
    if looks_like_path(name):
        raise kind(f"There is no folder {shown}.")
    if not _NAME.fullmatch(name) or ".." in name or "--" in name:
        raise kind(f"There is no folder {shown}, and no {what} on the hub can have that name (OWNER/NAME).")
    why = unreachable()
    if why is not None and not _cached(name, what):
        raise kind(f"There is no folder {shown}, and a {what} of that name cannot be downloaded: {why}.")


def unreachable() -> str | None:
    """Why the hub cannot be asked, or None where it can; asked once a process."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids it"
    endpoint = constants.ENDPOINT
    if endpoint not in _reached:
        place = urlsplit(endpoint)
        proxy = any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
        _reached[endpoint] = None if proxy else _refused(place.hostname or endpoint, place.port or 443)
    return _reached[endpoint]


def _refused(host: str, port: int) -> str | None:
    try:
        socket.create_connection((host, port), timeout=_PATIENCE).close()
    except OSError as error:
        return f"{host} cannot be reached ({reason(error)})"
    return None


def _cached(name: str, what: str) -> bool:
    """Whether the hub's cache has something of this name."""
    from huggingface_hub import constants

    kind = "datasets" if what == "data set" else "models"
    folder = Path(constants.HF_HUB_CACHE) / f"{kind}--{name.replace('/', '--')}" / "snapshots"
    return folder.is_dir()

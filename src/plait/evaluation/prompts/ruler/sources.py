"""What a user gives by path or by hub name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plait.data.files import read_text
from plait.errors import DataError
from plait.extras import install_command


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: a file that cannot be read, or is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from None


def hub_rows(spec: str, split: str) -> Iterator[Mapping[str, Any]]:
    """Rows of ``hf:NAME[:CONFIG]``, a data set of the Hugging Face hub or a local folder that ``datasets`` can load.

    Raises:
        DataError: ``datasets`` is not installed, the set cannot be loaded or has no such split.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(f"{spec!r} needs the package datasets: {install_command('hub')}") from None
    name, config = spec.removeprefix("hf:"), None
    if ":" in name and not Path(name).exists():
        name, _, config = name.rpartition(":")
    try:
        sets = datasets.load_dataset(name, config, streaming=True)
    except Exception as error:  # datasets, its file systems and its network libraries raise many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{spec!r} cannot be loaded: {reason}") from error
    if split not in sets:
        raise DataError(f"{spec!r} has no split {split!r}; found {', '.join(map(str, sets))}.")
    return iter(sets[split])

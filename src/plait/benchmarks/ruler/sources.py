"""What a user gives by path or by hub name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plait.errors import DataError
from plait.extras import install_command
from plait.files import foreign
from plait.hub import check_name


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
    if not Path(name).is_dir():
        check_name(name, "data set", DataError)
    with foreign(f"{spec!r} cannot be read"):
        sets = datasets.load_dataset(name, config, streaming=True, trust_remote_code=False)
        if split not in sets:
            raise DataError(f"{spec!r} has no split {split!r}; found {', '.join(map(str, sets))}.")
        yield from sets[split]

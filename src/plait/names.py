"""Names that become names of folders: they stay in their folder on every file system."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

#: Longest name in characters; a folder of it still has room for endings in 255 bytes.
LONGEST = 100
_FORM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: Devices of Windows, which are no files whatever their ending.
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def checked_name(name: str) -> str:
    """The name itself.

    Raises:
        ValueError: it could leave its folder, or is no name of a folder somewhere; the message says what is allowed.
    """
    if not _FORM.fullmatch(name) or name.endswith("."):
        raise ValueError(
            "it becomes the name of a folder: use letters a to z, digits, '.', '_' and '-', with a letter or digit "
            "first and no '.' last"
        )
    if len(name) > LONGEST:
        raise ValueError(f"a name has at most {LONGEST} characters, this one {len(name)}")
    if name.partition(".")[0].lower() in _RESERVED:
        raise ValueError("this is the name of a device on Windows; use another")
    return name


#: A name of a run, a study or another thing that gets a folder.
Name = Annotated[str, AfterValidator(checked_name)]

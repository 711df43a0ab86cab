"""Files: those of strangers are opened here, plait's own are written so that a kill or a flipped bit does no harm.

:mod:`~plait.files.reading` opens what somebody else wrote, :mod:`~plait.files.writing` writes whole or not at all,
:mod:`~plait.files.manifest` keeps sizes and hashes, :mod:`~plait.files.locks` lets one process write in a folder.
"""

from plait.files.reading import (
    PACKED_SUFFIXES,
    QUOTED,
    check_json_object,
    check_new_folder,
    check_pointer,
    content,
    decode,
    foreign,
    opened,
    parse_json,
    quoted,
    read_json,
    read_json_object,
    read_text,
    reason,
    regular_file,
)

__all__ = [
    "PACKED_SUFFIXES",
    "QUOTED",
    "check_json_object",
    "check_new_folder",
    "check_pointer",
    "content",
    "decode",
    "foreign",
    "opened",
    "parse_json",
    "quoted",
    "read_json",
    "read_json_object",
    "read_text",
    "reason",
    "regular_file",
]

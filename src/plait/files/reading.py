"""Files that somebody else wrote: opened here, and what is wrong with one is said in one sentence.

A name may stand for a folder, a link that leads nowhere or a pipe that nobody fills; content may be cut off, in another
encoding or nested without end; and a library that reads it raises whatever it raises. :func:`content` and
:func:`opened` open, :func:`decode` and :func:`parse_json` read, and :func:`foreign` turns what a library raises into a
sentence.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from plait.errors import DataError, PlaitError

#: Characters of a foreign value or message that are quoted.
QUOTED = 160
_POINTER = b"version https://git-lfs.github.com/spec/"
#: First bytes of packed files, their kind, and the command that unpacks them.
_PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -d"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\0": ("xz", "unxz"),
    b"PK\x03\x04": ("zip", "unzip"),
}
#: Suffixes of packed files that are not read, with the command that unpacks them.
PACKED_SUFFIXES = {
    ".zst": "zstd -d",
    ".bz2": "bunzip2",
    ".xz": "unxz",
    ".zip": "unzip",
    ".tar": "tar xf",
}


def quoted(value: object, limit: int = QUOTED) -> str:
    """``value`` as Python writes it, cut to ``limit`` characters; never builds a long text first.

    Args:
        value: anything that a file held.
        limit: most characters.
    """
    if isinstance(value, str):
        text = repr(value[:limit] + "..." if len(value) > limit else value)
    elif isinstance(value, int) and value.bit_length() > 256:
        text = f"a whole number of {value.bit_length() * 3 // 10} digits"
    elif isinstance(value, list | tuple | dict | set) and not _is_short(value, limit):
        text = f"a {type(value).__name__} of {len(value)}"
    else:
        text = repr(value)
    return text if len(text) <= limit + 5 else f"{text[:limit]}..."


def reason(error: BaseException, limit: int = 300) -> str:
    """What an error of a library says, as one line without a stop at the end.

    Args:
        error: the error.
        limit: most characters.
    """
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    elif isinstance(error, RecursionError):
        text = "it is nested too deeply"
    elif isinstance(error, KeyError) and error.args:
        text = f"{error.args[0]!r} is missing"
    else:
        lines = [line.strip() for line in str(error)[: 20 * limit].splitlines() if line.strip()]
        text = (lines[0] + (f" {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else "")) if lines else ""
        text = text or type(error).__name__
    text = text if len(text) <= limit else f"{text[:limit]}..."
    return text.rstrip(".")


@contextlib.contextmanager
def foreign(what: str, fix: str = "", kind: type[PlaitError] = DataError) -> Iterator[None]:
    """Whatever a library raises inside becomes ``"WHAT: REASON. FIX"``; plait's own errors pass.

    Args:
        what: the file and what was wanted of it, such as ``"a/config.json does not describe a model"``.
        fix: a sentence that says what to do.
        kind: the error to raise.

    Raises:
        PlaitError: of the ``kind``.
    """
    try:
        yield
    except (PlaitError, MemoryError):
        raise
    except BaseException as error:  # each library has its own kinds, and none promises to keep to them
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of a library in Rust
            raise
        raise kind(f"{what}: {reason(error)}.{' ' + fix if fix else ''}") from error


def regular_file(path: Path, kind: type[PlaitError] = DataError) -> Path:
    """``path`` if a file can be read there.

    Args:
        path: what the user named.
        kind: the error to raise.

    Raises:
        PlaitError: there is nothing, a folder, a link that leads nowhere, or a pipe or device, which might never end.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if os.path.islink(path):
            raise kind(f"{path} is a link to {os.readlink(path)}, which does not exist.") from None
        raise kind(f"There is no file {path}.") from None
    except NotADirectoryError:
        raise kind(f"There is no file {path}: a part of its path is a file and not a folder.") from None
    except OSError as error:
        raise kind(f"{quoted(str(path))} cannot be read: {reason(error)}.") from None
    except ValueError:  # a zero byte
        raise kind(f"{quoted(str(path))} is not a valid file name.") from None
    if stat.S_ISDIR(mode):
        raise kind(f"{path} is a folder; name a file.")
    if not stat.S_ISREG(mode):
        raise kind(f"{path} is a pipe or a device; write its content to a file and name that.")
    return path


def content(path: Path, kind: type[PlaitError] = DataError) -> bytes:
    """The bytes of a file; those inside it where its name ends in ``.gz``.

    Args:
        path: what the user named.
        kind: the error to raise.

    Raises:
        PlaitError: it cannot be read, or is a pointer of Git LFS in place of the file.
    """
    with opened(path, kind) as file:
        data = file.read()
    check_pointer(data, path, kind)
    return data


@contextlib.contextmanager
def opened(path: Path, kind: type[PlaitError] = DataError) -> Iterator[IO[bytes]]:
    """A file to read bytes from, unpacked where its name ends in ``.gz``.

    Args:
        path: what the user named; a pipe only where it is this process's standard input.
        kind: the error to raise.

    Raises:
        PlaitError: it cannot be opened, or reading fails.
    """
    if not _is_stdin(path):
        regular_file(path, kind)
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
            yield file  # type: ignore[misc]
    except (OSError, EOFError, zlib.error) as error:
        raise kind(f"{path} cannot be read: {reason(error)}.") from error


def check_pointer(start: bytes, path: Path, kind: type[PlaitError] = DataError) -> None:
    """Raise where a file's first bytes are those of a pointer of Git LFS."""
    if start.startswith(_POINTER):
        raise kind(f"{path} is a pointer of Git LFS, not the file itself; fetch it: git lfs pull.")


def read_text(path: Path, kind: type[PlaitError] = DataError) -> str:
    """The text of a UTF-8 file, line ends as they are, without a byte order mark.

    Raises:
        PlaitError: broken UTF-8 (with the byte offset), a binary file, a file that cannot be opened.
    """
    return decode(content(path, kind), path, kind=kind)


def decode(content: bytes, path: Path, offset: int = 0, kind: type[PlaitError] = DataError, place: str = "") -> str:
    """Bytes of a file as text; see :func:`read_text`.

    Args:
        content: the bytes.
        path: the file.
        offset: of the first byte in the file.
        kind: the error to raise.
        place: for messages, such as ``", line 3"``.
    """
    if offset == 0:
        for start, (packing, command) in _PACKED.items():
            if content.startswith(start):
                raise kind(f"{path} is compressed with {packing}; decompress it first: {command} {path}")
        for mark, encoding in ((b"\xff\xfe\0\0", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")):
            if content.startswith(mark):
                raise kind(
                    f"{path} is {encoding}, not UTF-8; convert it: iconv -f {encoding} -t UTF-8 {path} > new.txt"
                )
    zero = content.find(b"\0")
    if zero >= 0:
        raise kind(f"{path}{place} looks binary (a zero byte at offset {offset + zero}); name a text file.")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise kind(
            f"{path}{place} is not UTF-8: byte 0x{content[error.start]:02x} at offset {offset + error.start} "
            f"({error.reason}); convert the file to UTF-8, from latin-1 for instance with: "
            f"iconv -f LATIN1 -t UTF-8 {path} > new.txt"
        ) from None
    return text.removeprefix("\ufeff") if offset == 0 else text


def read_json(path: Path, kind: type[PlaitError] = DataError) -> Any:
    """The content of a JSON file; see :func:`parse_json`."""
    return parse_json(read_text(path, kind), str(path), kind)


def parse_json(text: str, where: str, kind: type[PlaitError] = DataError) -> Any:
    """The value that a JSON text holds.

    Args:
        text: the text.
        where: its file (and line), for messages.
        kind: the error to raise.

    Raises:
        PlaitError: it is empty, is not JSON, is nested too deeply or has a number too long to read.
    """
    if not text.strip():
        raise kind(f"{where} is empty.")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise kind(f"{where} is not JSON: {error.msg} at {place}.") from None
    except RecursionError:
        raise kind(f"{where} is nested too deeply.") from None
    except ValueError as error:  # a number of more than 4,300 digits
        raise kind(f"{where} cannot be read as JSON: {reason(error)}.") from None


def read_json_object(path: Path, kind: type[PlaitError] = DataError) -> dict[str, Any]:
    """The content of a JSON file that holds an object.

    Raises:
        PlaitError: it cannot be read or holds something else.
    """
    value = read_json(path, kind)
    if not isinstance(value, dict):
        raise kind(f"{path} is not a JSON object but {quoted(value, 60)}.")
    return value


def check_json_object(path: Path, kind: type[PlaitError] = DataError) -> dict[str, Any]:
    """As :func:`read_json_object`, of a file that another library reads too, which takes no byte order mark."""
    if content(path, kind).startswith(b"\xef\xbb\xbf"):
        raise kind(f"{path} begins with a byte order mark, which JSON does not allow; save it as UTF-8 without one.")
    return read_json_object(path, kind)


def check_new_folder(path: Path, kind: type[PlaitError] = DataError) -> Path:
    """``path`` if a folder is there or can be made there and be written to; makes nothing.

    Args:
        path: what the user named, such as ``--out``.
        kind: the error to raise.

    Raises:
        PlaitError: a file has this name or that of a folder above it, or there is no leave to write.
    """
    for place in (path, *path.parents):
        try:
            mode = os.stat(place).st_mode
        except (FileNotFoundError, NotADirectoryError):
            if os.path.islink(place):
                raise kind(f"{place} is a link to {os.readlink(place)}, which does not exist.") from None
            continue
        except (OSError, ValueError) as error:
            raise kind(f"{quoted(str(place))} is not a valid folder name: {reason(error)}.") from None
        if not stat.S_ISDIR(mode):
            raise kind(f"{place} is a file; name a folder.")
        if not os.access(place, os.W_OK | os.X_OK):
            raise kind(f"The folder {place} cannot be written to; name another.")
        break
    return path


def _is_stdin(path: Path) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(0))
    except (OSError, ValueError):
        return False


def _is_short(value: Any, limit: int) -> bool:
    """Whether a nested value has at most ``limit`` parts; what refers to itself or is shared counts each time."""
    waiting, seen = [value], 0
    while waiting:
        part = waiting.pop()
        seen += 1
        if seen > limit:
            return False
        if isinstance(part, dict):
            waiting.extend(part.keys())
            waiting.extend(part.values())
        elif isinstance(part, list | tuple | set):
            waiting.extend(part)
        elif (isinstance(part, str) and len(part) > limit) or (isinstance(part, int) and part.bit_length() > 256):
            return False
    return True

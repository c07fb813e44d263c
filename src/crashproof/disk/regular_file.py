"""Read the files of a run, which anybody may have put there.

A run comes from a cluster, a colleague, an archive. So a name in it can be a named pipe, on which an ordinary `open`
waits for ever, a link to a device that never ends, or a file with a hole of a terabyte. Whatever reads a run opens
its files here.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from crashproof.disk.descriptors import above_standard
from crashproof.errors import FileUnreadable, TooManyOpenFiles

__all__ = [
    "kind_in_words",
    "next_data",
    "open_descriptor",
    "open_regular",
    "open_to_read",
    "read_errors",
    "read_small",
    "too_many_open_files",
]

_BLOCK_BYTES = 1 << 20
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_SEEK_DATA = getattr(os, "SEEK_DATA", None)


def open_descriptor(path: Path) -> int:
    """Open a regular file, or a link to one, for reading; never waits.

    Raises:
        FileNotFoundError: there is none.
        FileUnreadable: it is something else than a regular file, or may not be read.
        TooManyOpenFiles: of this process or machine.
    """
    with read_errors(path):
        file, kind = open_regular(path, os.O_RDONLY)
    if kind is not None:
        raise FileUnreadable(path, reason=f"it is {kind}, not a regular file", hint="Move it out of the run.")
    return file


def open_regular(path: Path, flags: int) -> tuple[int, str | None]:
    """Open a regular file without waiting; of anything else return what it is, and no open file."""
    try:
        # Without O_NONBLOCK the opening of a pipe waits for its other end.
        file = above_standard(os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o644))
    except OSError as error:
        # A socket cannot be opened at all, nor a pipe for writing that nobody reads.
        kind = kind_in_words(os.stat(path).st_mode) if error.errno == errno.ENXIO else None
        if kind is None:
            raise
        return -1, kind
    kind = kind_in_words(os.fstat(file).st_mode)
    if kind is not None:
        os.close(file)
    return file, kind


def open_to_read(path: Path) -> BinaryIO:
    """The same, buffered."""
    return os.fdopen(open_descriptor(path), "rb", buffering=_BLOCK_BYTES)


def read_small(path: Path, *, most_bytes: int) -> bytes:
    """Read a whole file that is not large.

    Raises:
        FileNotFoundError: there is none.
        FileUnreadable: it is larger than `most_bytes`, or see `open_descriptor`.
    """
    with open_to_read(path) as file, read_errors(path):
        num_bytes = os.fstat(file.fileno()).st_size
        if num_bytes > most_bytes:
            raise FileUnreadable(path, reason=f"it has {num_bytes:,} bytes, more than {most_bytes:,}")
        return file.read(num_bytes)


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Say in words why a file cannot be read; a missing one stays `FileNotFoundError`."""
    try:
        yield
    except NotADirectoryError as error:
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise too_many_open_files(path, error) from error
        raise FileUnreadable(path, reason=error.strerror or str(error)) from error


def too_many_open_files(path: Path, error: OSError) -> TooManyOpenFiles:
    """The error that names the limit which was reached."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if error.errno == errno.EMFILE else None
    return TooManyOpenFiles(path, limit=limit)


def kind_in_words(mode: int) -> str | None:
    """What the mode of a file says it is, or None for a regular file."""
    return next((words for is_kind, words in _KINDS if is_kind(mode)), None)


def next_data(file: int, offset: int) -> int:
    """The first offset from this one on that is not in a hole; where there is none, the end of the file."""
    if _SEEK_DATA is None:  # pragma: no cover - every system that is tested has it.
        return offset
    before = os.lseek(file, 0, os.SEEK_CUR)
    try:
        return os.lseek(file, offset, _SEEK_DATA)
    except OSError as error:
        # Some file systems cannot tell.
        return max(offset, os.fstat(file).st_size) if error.errno == errno.ENXIO else offset
    finally:
        # A buffered reader of the same file must find it where it left it.
        os.lseek(file, before, os.SEEK_SET)

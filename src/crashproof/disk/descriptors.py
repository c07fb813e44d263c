"""File descriptors that no standard stream can be taken for."""

from __future__ import annotations

import fcntl
import os

__all__ = ["above_standard"]

_FIRST_FREE = 3
"""Below it are standard input, output and error."""


def above_standard(file: int) -> int:
    """The same open file under a descriptor above standard error's.

    Where a process was started with standard output closed, the next file it opens gets that number, and whatever
    any code or child process prints lands in it.
    """
    if file >= _FIRST_FREE:
        return file
    try:
        return fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)
    finally:
        os.close(file)

"""The stacks of processes that hang."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TextIO

from crashproof.disk.atomic import write_bytes_atomically
from crashproof.disk.files import REAL_DISK
from crashproof.disk.run_folder import RunFolder

__all__ = ["keep_stacks", "open_stacks_file"]


def open_stacks_file(path: Path) -> TextIO:
    """A new file that a signal handler of this process, or of a child of it, can write to."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    return open(os.open(path, flags, 0o600), "w")


def keep_stacks(folder: RunFolder, attempt: int, content: str) -> Path:
    """Keep stacks in a run's folder, each time in a file of its own; return its path.

    Raises:
        DiskFull, StorageUnwritable: they are not kept.
    """
    REAL_DISK.make_folders(folder.stacks)
    path = folder.free_name(folder.stacks / f"attempt_{attempt}.txt")
    write_bytes_atomically(path, content.encode("utf-8", "replace"))
    return path

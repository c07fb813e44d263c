"""One byte that a process shows its supervisor."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from crashproof.disk.supervision.private_folder import read_if_there

__all__ = ["PhaseBoard", "read_board"]


class PhaseBoard:
    """Written by a store to shared memory: no call that could wait, and it stays when the process is stuck in C."""

    def __init__(self, path: Path) -> None:
        """Begin with 0.

        Raises:
            OSError: the file cannot be made.
        """
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(file, 1)
            self._memory = mmap.mmap(file, 1)
        finally:
            os.close(file)
        self.show(0)

    def show(self, value: int) -> None:
        """Show a number from 0 to 255."""
        self._memory[0] = value


def read_board(path: Path) -> int:
    """The number that a process shows; 0 if it shows none."""
    return (read_if_there(path) or b"\0")[0]

"""Sweep what failed saves have left."""

from __future__ import annotations

import re

from crashproof.disk.atomic import remove_partials
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.disk.lock import WriterLock
from crashproof.disk.run_folder import RunFolder

__all__ = ["sweep_before_start", "sweep_partial_checkpoints"]

_OF_A_TRAINER = re.compile(r"checkpoint_[0-9]+(?:\.pt)?")
"""Other code may write atomically beside a run: its partial files are its own."""


def sweep_partial_checkpoints(folder: RunFolder, *, disk: Disk = REAL_DISK) -> None:
    """Remove the partial checkpoints of a trainer, which hold the space that the next one needs.

    Only for the run's writer, while it saves none.

    Raises:
        OSError: one of them cannot be removed.
    """
    remove_partials(folder.root, of=_OF_A_TRAINER, disk=disk)


def sweep_before_start(folder: RunFolder, *, disk: Disk = REAL_DISK) -> None:
    """Remove the partial checkpoints that a killed process left, before the run is opened.

    Raises:
        RunInUse: another live process writes the run.
        OSError: one of them cannot be removed.
    """
    if not folder.holds_a_run:
        return
    lock = WriterLock(folder.lock, disk=disk)
    try:
        sweep_partial_checkpoints(folder, disk=disk)
    finally:
        lock.release()

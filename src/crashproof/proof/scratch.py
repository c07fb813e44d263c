"""The folders of a proof."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crashproof.disk.files import REAL_DISK, Disk
from crashproof.errors import ConfigError

__all__ = ["Scratch", "scratch_folder"]


@contextmanager
def scratch_folder(kept: Path | None, *, disk: Disk = REAL_DISK) -> Iterator[Scratch]:
    """A folder for a proof: `kept`, which stays, or a temporary one.

    Raises:
        ConfigError: `kept` is not empty.
    """
    if kept is not None and kept.exists() and any(kept.iterdir()):
        raise ConfigError(f"{kept} is not empty.", hint="Name a folder that does not exist yet.")
    root = kept or Path(tempfile.gettempdir(), f"crashproof-prove-{secrets.token_hex(4)}")
    disk.make_folders(root)
    try:
        yield Scratch(root, disk=disk)
    finally:
        if kept is None:
            disk.remove_tree(root)


class Scratch:
    """Every path of a proof, in a folder of its own.

    All runs of a proof are trained under the same path, one after the other, so that no path makes a difference.
    """

    def __init__(self, root: Path, *, disk: Disk = REAL_DISK) -> None:
        self.root = root.resolve()
        self.output_dir = self.root / "run"
        """What stands for `{output_dir}`."""
        self._disk = disk
        self._num_starts = 0

    def next_start(self, name: str) -> Path:
        """An empty folder for the next start of the command."""
        self._num_starts += 1
        place = self.root / f"start-{self._num_starts}-{name}"
        self._disk.make_folders(place)
        return place

    def begin_run(self) -> None:
        """Make an empty output folder for the next run."""
        self._disk.make_folders(self.output_dir)

    def keep_run(self, name: str) -> Path:
        """Move the run that has ended to another name, and return where it lies now."""
        kept = self.root / name
        self._disk.replace(self.output_dir, kept)
        return kept

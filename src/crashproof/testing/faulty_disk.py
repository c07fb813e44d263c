"""A disk with injected faults."""

from __future__ import annotations

import errno
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

from crashproof.disk.files import Disk

__all__ = ["FaultyDisk", "PowerLost"]


class PowerLost(BaseException):
    """The power is lost at this operation. Do not catch it: a process without power could not either."""


@dataclass(slots=True)
class _Inode:
    """The durable state of a file or folder, without what is still in the page cache."""

    keeper: Path
    """A hard link that keeps the file's bytes reachable after its own name is removed."""
    is_folder: bool
    durable_content: bytes = b""
    durable_names: dict[str, int] = field(default_factory=dict)
    """For a folder: inodes by the names that would survive."""


class FaultyDisk(Disk):
    """A disk that fails at the n-th operation, for any n.

    Works on a real folder, so that reads are unaffected. Every change is counted. Operation number `fails_at` either
    raises `OSError(error)`, if `error` is given, or loses power: it and every later operation raise `PowerLost`, and
    `after_power_loss` builds what would be left of the folder.

    POSIX guarantees only the bytes at the last `sync` of a file and the names at the last `sync_folder` of a folder.
    Whether more survives is up to the disk, so several outcomes must be tested:

    * `"strict"`: nothing that was not synced.
    * `"kept"`: everything, synced or not.
    * `"names_first"`: all names and lengths, and zeros for bytes that were not synced.
    * `"torn"`: all names, and of the bytes that were not synced a random first part, with a random byte broken.
    """

    WORLDS = ("strict", "kept", "names_first", "torn")

    def __init__(
        self,
        root: Path,
        scratch: Path,
        *,
        fails_at: int | None = None,
        error: int | None = None,
        lasts: bool = False,
        ignores_folder_syncs: bool = False,
    ) -> None:
        """Track `root`, an existing folder; `scratch` is a folder beside it, on the same file system.

        Args:
            root: The folder that the code under test writes.
            scratch: The folder for hard links to its files.
            fails_at: The operation to fail, counted from 0; None only counts.
            error: An `errno`, such as `errno.ENOSPC`; None is a power loss.
            lasts: Whether later operations that need space fail too, as on a full disk.
            ignores_folder_syncs: Whether to ignore `sync_folder`, to prove that a test detects it.
        """
        self.num_operations = 0
        self._root = root
        self._scratch = scratch
        self._fails_at = fails_at
        self._error = error
        self._lasts = lasts
        self._ignores_folder_syncs = ignores_folder_syncs
        self._is_off = False
        self._failing: int | None = None
        self._inodes: dict[int, _Inode] = {}
        self._folders: dict[int, Path] = {}
        scratch.mkdir(parents=True, exist_ok=True)
        self._adopt_tree(root)

    def begin_failing(self, error: int) -> None:
        """Let every change fail with an `errno` from now on, as on a disk that went read-only, full or bad."""
        self._failing = error

    def stop_failing(self) -> None:
        """Let changes succeed again."""
        self._failing = None

    def make_folder(self, path: Path) -> None:
        if path.is_dir():
            return
        self._step(needs_space=True)
        super().make_folder(path)
        self._remember(path)

    def open_to_append(self, path: Path) -> int:
        if not path.exists():
            self._step(needs_space=True)
        file = super().open_to_append(path)
        self._remember(path)
        return file

    def open_anew(self, path: Path) -> int:
        self._step(needs_space=True)
        file = super().open_anew(path)
        self._remember(path)
        return file

    def open_to_sync(self, path: Path) -> int:
        # Written by foreign code; nothing of it is durable yet.
        self._remember(path)
        return super().open_to_sync(path)

    def write(self, file: int, content: bytes | memoryview) -> int:  # type: ignore[override]  # Static in the base.
        if self._is_broken_now():
            # Write half of it: a torn write.
            os.write(file, bytes(content)[: len(content) // 2])
        self._step(needs_space=True)
        return os.write(file, content)

    def truncate(self, file: int, num_bytes: int) -> None:
        self._step()
        super().truncate(file, num_bytes)

    def allocate(self, file: int, num_bytes: int) -> None:
        self._step(needs_space=True)
        super().allocate(file, num_bytes)

    def sync(self, file: int) -> None:
        self._step()
        super().sync(file)
        inode = self._inodes[os.fstat(file).st_ino]
        inode.durable_content = inode.keeper.read_bytes()

    def sync_folder(self, path: Path) -> None:
        self._step()
        if self._ignores_folder_syncs:
            return
        self._remember(path)
        self._inodes[path.stat().st_ino].durable_names = self._names(path)

    def replace(self, source: Path, target: Path) -> None:
        self._step()
        super().replace(source, target)

    def link(self, source: Path, target: Path) -> None:
        self._step(needs_space=True)
        super().link(source, target)

    def remove_file(self, path: Path) -> None:
        self._step()
        super().remove_file(path)

    def remove_tree(self, path: Path) -> None:
        self._step()
        # Moved instead of removed, so that the inode numbers are not reused.
        path.replace(self._scratch / f"removed_{self.num_operations}")

    def after_power_loss(self, target: Path, world: str, *, seed: int = 0) -> None:
        """Build in the new folder `target` what is left of the root in one of the `WORLDS`."""
        target.mkdir(parents=True)
        self._rebuild(self._root.stat().st_ino, self._root, target, world, random.Random(seed))  # noqa: S311

    def _step(self, *, needs_space: bool = False) -> None:
        if self._is_off:
            raise PowerLost
        number, self.num_operations = self.num_operations, self.num_operations + 1
        if self._failing is not None:
            raise OSError(self._failing, os.strerror(self._failing))
        if self._fails_at is None or number < self._fails_at:
            return
        if self._error is None:
            self._is_off = True
            raise PowerLost
        if number == self._fails_at or (self._lasts and needs_space):
            raise OSError(self._error, os.strerror(self._error))

    def _is_broken_now(self) -> bool:
        is_the_one = self.num_operations == self._fails_at
        return not self._is_off and is_the_one and self._error in (None, errno.ENOSPC)

    def _adopt_tree(self, folder: Path) -> None:
        """Treat everything that exists as durable."""
        self._remember(folder)
        for child in folder.iterdir():
            if child.is_dir():
                self._adopt_tree(child)
            else:
                self._remember(child)
                self._inodes[child.stat().st_ino].durable_content = child.read_bytes()
        self._inodes[folder.stat().st_ino].durable_names = self._names(folder)

    def _remember(self, path: Path) -> None:
        number = path.stat().st_ino
        if number in self._inodes:
            return
        keeper = path
        if not path.is_dir():
            keeper = self._scratch / str(number)
            keeper.unlink(missing_ok=True)
            # The link also keeps the inode number from being reused.
            os.link(path, keeper)
        self._inodes[number] = _Inode(keeper=keeper, is_folder=path.is_dir())

    def _names(self, folder: Path) -> dict[str, int]:
        return {entry.name: entry.inode() for entry in os.scandir(folder)}

    def _rebuild(self, number: int, live: Path | None, target: Path, world: str, chance: random.Random) -> None:
        inode = self._inodes.get(number)
        durable = inode.durable_names if inode else {}
        names = durable if world == "strict" or live is None else self._names(live)
        for name, child in names.items():
            known = self._inodes.get(child)
            live_child = live / name if live is not None and (live / name).exists() else None
            if known.is_folder if known else live_child is not None and live_child.is_dir():
                (target / name).mkdir()
                self._rebuild(child, live_child, target / name, world, chance)
            else:
                (target / name).write_bytes(self._content(known, live_child, world, chance))

    @staticmethod
    def _content(inode: _Inode | None, live: Path | None, world: str, chance: random.Random) -> bytes:
        durable = inode.durable_content if inode else b""
        keeper = inode.keeper if inode else live
        current = keeper.read_bytes() if keeper is not None and keeper.exists() else b""
        if world == "strict":
            return durable
        if world == "kept" or current == durable:
            return current
        common = _length_of_common_start(durable, current)
        if world == "names_first":
            return current[:common] + bytes(len(current) - common)
        torn = bytearray(current[: chance.randint(common, len(current))])
        if len(torn) > common:
            torn[chance.randrange(common, len(torn))] ^= 1 << chance.randrange(8)
        return bytes(torn)


def _length_of_common_start(one: bytes, other: bytes) -> int:
    shorter = min(len(one), len(other))
    return next((place for place in range(shorter) if one[place] != other[place]), shorter)

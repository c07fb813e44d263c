"""Write a journal again that was edited or removed under its writer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from crashproof.disk.atomic import partial_name, write_all
from crashproof.disk.files import Disk, storage_errors
from crashproof.disk.journal import Journal, Line, line_crc, scan
from crashproof.disk.run_folder import RunFolder
from crashproof.records.snapshots import JournalMark

__all__ = ["KnownLines", "Restoration", "restore_journal"]


class Restoration(Struct, frozen=True, kw_only=True):
    """A journal that was written again."""

    name: str
    """That of its file."""
    what: str
    """What had been done to it, as the end of a sentence that begins with its name."""
    num_lines: int
    """Lines in it now."""
    num_lost: int
    """Lines that are neither in what was left of it nor in memory."""
    moved_to: Path | None
    """Where the file is that was in its way; None if there was none."""

    def __str__(self) -> str:
        lost = f"lines lost: {self.num_lost:,}" if self.num_lost else "no line is lost"
        aside = "" if self.moved_to is None else f"; what was in its place is {self.moved_to}"
        return f"{self.name} {self.what}, and is written again with {self.num_lines:,} lines: {lost}{aside}"


def restore_journal(
    journal: Journal, what: str, known: Iterable[bytes], *, quarantine: Path, disk: Disk
) -> Restoration:
    """Write a journal again, durably, and let its writer go on in the new file; its owner locks.

    A file that lost only its name is still open and is copied to the last byte. Of one that was edited in place, all
    intact lines are kept, and `known` completes them.

    Raises:
        DiskFull, StorageUnwritable: everything is as it was.
    """
    path, num_before = journal.path, journal.mark.num_lines
    with storage_errors(path):
        disk.make_folders(path.parent)
        if journal.is_as_written():
            partial, mark = _write_again(path, journal.content(), disk), journal.mark
        else:
            lines = KnownLines(journal.open_path, known)
            partial, mark = _write_again(path, lines, disk), lines.mark
        moved_to = _move_aside(path, quarantine, disk)
        disk.replace(partial, path)
        disk.sync_folder(path.parent)
        journal.reopen(mark)
    return Restoration(
        name=path.name,
        what=what,
        num_lines=mark.num_lines,
        num_lost=max(0, num_before - mark.num_lines),
        moved_to=moved_to,
    )


def _write_again(path: Path, blocks: Iterable[bytes], disk: Disk) -> Path:
    """Write a journal's content to a partial file beside it, durably; return that file."""
    partial = partial_name(path)
    try:
        file = disk.open_anew(partial)
        try:
            for block in blocks:
                write_all(file, block, disk)
            disk.sync(file)
        finally:
            disk.close(file)
    except OSError:
        with suppress(OSError):
            disk.remove_file(partial)
        raise
    return partial


def _move_aside(path: Path, quarantine: Path, disk: Disk) -> Path | None:
    """Move whatever has a journal's name into quarantine; return where it is, or None if nothing has it."""
    if not path.exists() and not path.is_symlink():
        return None
    disk.make_folders(quarantine)
    target = RunFolder.free_name(quarantine / path.name)
    disk.replace(path, target)
    disk.sync_folder(quarantine)
    return target


class KnownLines:
    """What is left of a journal, completed by what its writer knows; counts as it is read."""

    def __init__(self, left: Path, known: Iterable[bytes]) -> None:
        """`left` is the file that was altered; `known` are the newest lines, in order, as far as they are known."""
        self._left = left
        self._known = dict.fromkeys(known)
        self.mark = JournalMark()
        """The end of what was read so far."""

    def __iter__(self) -> Iterator[bytes]:
        """Yield the lines: those that only the file has are older than all that are known."""
        for piece in scan(self._left):
            if isinstance(piece, Line) and piece.content not in self._known:
                yield self._counted(piece.content)
        for line in self._known:
            yield self._counted(line)

    def _counted(self, line: bytes) -> bytes:
        self.mark = JournalMark(
            num_bytes=self.mark.num_bytes + len(line),
            num_lines=self.mark.num_lines + 1,
            last_line_crc=line_crc(line),
        )
        return line

"""Repair a journal that nobody holds open."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from msgspec import structs

from crashproof.disk.atomic import partial_name, write_all
from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.disk.journal import Damage, Line, quarantine_bytes, read_bytes_at, scan
from crashproof.disk.run_folder import RunFolder
from crashproof.records.lines.checksummed_line import MAX_LINE_BYTES

__all__ = ["repair_journal"]

log = logging.getLogger("crashproof")


def repair_journal(path: Path, *, quarantine: Path, start: int = 0, disk: Disk = REAL_DISK) -> list[Damage]:
    """Move all damage of a journal to the file `quarantine`, and keep all intact lines as they were written.

    Checks from the offset `start` on; if more than the last line is damaged there, the whole file is repaired. The
    damage is durable in quarantine before the journal changes: a crash in between duplicates it there and loses
    nothing. Intact lines that were merged with damage are kept.
    """
    damages, reformatted = _find_changes(path, start)
    if not damages and not reformatted:
        return []
    with storage_errors(path):
        if any(each.is_too_long for each in damages):
            return _repair_by_name(path, quarantine, disk)
        if not reformatted and damages[0].is_torn_tail:
            _quarantine_damages(path, damages, quarantine, disk)
            _truncate_file(path, damages[0].offset, disk)
        else:
            damages = _find_changes(path, 0)[0]
            if any(each.is_too_long for each in damages):
                return _repair_by_name(path, quarantine, disk)
            if damages:
                _quarantine_damages(path, damages, quarantine, disk)
            _rewrite_intact_lines(path, disk)
    return damages


def _repair_by_name(path: Path, quarantine: Path, disk: Disk) -> list[Damage]:
    """Keep all of a journal under a second name in quarantine: a copy of a terabyte of zeros would fill the disk."""
    damages = _find_changes(path, 0)[0]
    disk.make_folders(quarantine.parent)
    target = RunFolder.free_name(quarantine)
    disk.link(path.resolve(), target)
    disk.sync_folder(quarantine.parent)
    _rewrite_intact_lines(path, disk)
    log.warning(
        "%s was damaged beyond %d MiB in one piece; all of it is kept as %s.", path, MAX_LINE_BYTES >> 20, target
    )
    return [structs.replace(each, moved_to=target) for each in damages]


def _quarantine_damages(path: Path, damages: Iterable[Damage], quarantine: Path, disk: Disk) -> None:
    quarantine_bytes((piece for each in damages for piece in _read_damage(path, each)), quarantine, disk)


def _read_damage(path: Path, damage: Damage) -> Iterator[bytes]:
    """Yield the bytes of a damage; of many damaged lines, some at a time."""
    offset = damage.offset
    while content := read_bytes_at(path, offset=offset, num_bytes=damage.end - offset):
        if offset + len(content) < damage.end:
            content = content[: content.rfind(b"\n") + 1]
        yield content
        offset += len(content)


def _find_changes(path: Path, start: int) -> tuple[list[Damage], int]:
    """The damage from an offset on, and the number of lines that another program has reformatted."""
    damages, num_reformatted = [], 0
    for piece in scan(path, start=start):
        if isinstance(piece, Damage):
            damages.append(piece)
        else:
            num_reformatted += piece.is_reformatted
    return damages, num_reformatted


def _truncate_file(path: Path, num_bytes: int, disk: Disk) -> None:
    file = disk.open_to_append(path)
    try:
        disk.truncate(file, num_bytes)
        disk.sync(file)
    finally:
        disk.close(file)


def _rewrite_intact_lines(path: Path, disk: Disk) -> None:
    partial = partial_name(path)
    try:
        file = disk.open_anew(partial)
        try:
            for piece in scan(path):
                if isinstance(piece, Line):
                    write_all(file, piece.content, disk)
            disk.sync(file)
        finally:
            disk.close(file)
        disk.replace(partial, path)
    except OSError:
        with suppress(OSError):
            disk.remove_file(partial)
        raise
    disk.sync_folder(path.parent)

"""Find checkpoints that no record names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from crashproof.checkpoints.verify import problem_with
from crashproof.disk.journal import Line, scan
from crashproof.disk.lost_records import Trace
from crashproof.disk.regular_file import read_errors
from crashproof.disk.run_folder import RunFolder
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.events import CheckpointRecorded, Event
from crashproof.records.lines.codec import decode_line
from crashproof.records.lines.lazy_decoder import LazyDecoder

__all__ = ["find_loose"]

_MOST_NAMED = 10
_decoder = LazyDecoder[Event](Event)


def find_loose(folder: RunFolder, *, before: float | None = None) -> list[Trace]:
    """What lies under the names that a run gives its checkpoints, in a folder where no record names one.

    A file that an archived session has recorded, byte for byte, is that session's: its deletion was lost with the
    power. With `before`, in seconds since 1970, only what was last written earlier: where a session has begun, a kill
    may have come between the saving of a checkpoint and its record.
    """
    with read_errors(folder.root):
        own = [each for each in folder.own_checkpoints() if before is None or each.lstat().st_mtime < before]
    loose = [path for path in own if not _is_archived(path, folder)]
    found = [(each.name, "no record of it can be read") for each in loose[-_MOST_NAMED:]]
    if len(loose) > _MOST_NAMED:
        found.append((f"{len(loose) - _MOST_NAMED} more", "likewise"))
    return found


def _is_archived(path: Path, folder: RunFolder) -> bool:
    return any(problem_with(each, folder, trusts_unverified=True) is None for each in _archived_records(path, folder))


def _archived_records(path: Path, folder: RunFolder) -> Iterator[CheckpointMetadata]:
    """Yield what archived sessions have recorded under the name of a checkpoint."""
    name = folder.recorded_path(path)
    for events in sorted(folder.archive.glob("*/events.jsonl")):
        for piece in scan(events):
            if isinstance(piece, Line):
                event = decode_line(events, piece.content, _decoder)
                if isinstance(event, CheckpointRecorded) and event.checkpoint.checkpoint_path == name:
                    yield event.checkpoint

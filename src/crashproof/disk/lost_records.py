"""Find what is left of a run whose records are lost.

"Nothing was ever recorded" must have been seen. Where no record can be read, a journal with bytes in it or a snapshot
shows that there was one; `checkpoints/loose.py` finds its checkpoints.
"""

from __future__ import annotations

import os
from pathlib import Path

from crashproof.disk.journal import Damage, Line, read_bytes_at, scan
from crashproof.disk.regular_file import read_errors, read_small
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import FileUnreadable
from crashproof.records.lines.reformatted_line import restore, what_it_looks_like

__all__ = ["MAX_SNAPSHOT_BYTES", "Trace", "find_traces", "has_a_line"]

MAX_SNAPSHOT_BYTES = 256 << 20
_STEMS = ("events", "metrics", "session", "checkpoints", "progress")
_ENDINGS = (".json", ".jsonl")
_BEGINNING_BYTES = 64
_BEGINNING = b'{"event":"session_started",'

Trace = tuple[str, str]
"""A path relative to the run, and why it is no record."""


def find_traces(folder: RunFolder) -> list[Trace]:
    """What shows that a run was recorded here, where its records may have named checkpoints that nobody knows now.

    Empty where all events or a snapshot can be read, and where nothing was ever acknowledged: a first start that was
    cut off leaves at most one damaged line of events.
    """
    if _is_complete(folder.events) or any(map(_is_readable, (folder.session, folder.manifest))):
        return []
    events, metrics = _problem_with(folder.events), _problem_with(folder.metrics)
    snapshots = [
        (folder.recorded_path(each), "it is damaged")
        for each in (folder.session, folder.manifest, folder.summary)
        if os.path.lexists(each) and not _is_readable(each)
    ]
    if folder.summary.exists() and _is_readable(folder.summary):
        snapshots.append((folder.recorded_path(folder.summary), "it names no checkpoint"))
    others = _other_names(folder)
    has_begun = bool(snapshots or others) or _has_recorded(folder.metrics) or _num_damages(folder.events) > 1
    journals = [
        (folder.recorded_path(path), problem)
        for path, problem in ((folder.events, events), (folder.metrics, metrics))
        if problem is not None
    ]
    return [*journals, *snapshots, *others] if has_begun else []


def has_a_line(path: Path) -> bool:
    """Whether a journal has at least one intact line."""
    return any(isinstance(piece, Line) for piece in scan(path))


def _is_complete(events: Path) -> bool:
    """Whether a journal of events begins where a session does, and nothing in it is damaged."""
    has_beginning = False
    for piece in scan(events):
        if isinstance(piece, Damage):
            return False
        has_beginning = has_beginning or piece.content.startswith(_BEGINNING)
    return has_beginning


def _problem_with(journal: Path) -> str | None:
    """What is wrong with a journal that does not say all it should; None if it does not exist."""
    if not os.path.lexists(journal):
        return None
    if not journal.exists():
        return "it is a link that leads nowhere"
    is_empty = True
    for piece in scan(journal):
        is_empty = False
        if isinstance(piece, Damage):
            return piece.reason
    return "it is empty" if is_empty else "the events that belong to it are lost"


def _num_damages(journal: Path) -> int:
    return sum(isinstance(piece, Damage) for piece in scan(journal))


def _has_recorded(metrics: Path) -> bool:
    """Whether a journal of metrics holds, or held, more than the beginning of its first line."""
    if not metrics.exists():
        return os.path.lexists(metrics)
    first = next(scan(metrics), None)
    is_cut_off = isinstance(first, Damage) and first.is_torn_tail and first.content.startswith(b"{")
    return first is not None and not is_cut_off


def _is_readable(snapshot: Path) -> bool:
    try:
        return restore(read_small(snapshot, most_bytes=MAX_SNAPSHOT_BYTES)) is not None
    except (FileNotFoundError, FileUnreadable):
        return False


def _other_names(folder: RunFolder) -> list[Trace]:
    """Files of a run under names that another program has given them: a copy, a backup, a compressed one."""
    if folder.progress.is_symlink() and not folder.progress.exists():
        return [(folder.progress.name, "it is a link that leads nowhere")]
    try:
        with read_errors(folder.progress):
            names = sorted(os.listdir(folder.progress))
    except FileNotFoundError:
        return []
    own = {f"{stem}{ending}" for stem in _STEMS for ending in _ENDINGS}
    return [
        (folder.recorded_path(folder.progress / each), _why_not_read(folder.progress / each))
        for each in names
        if each not in own and each.startswith(_STEMS) and any(ending in each for ending in _ENDINGS)
    ]


def _why_not_read(path: Path) -> str:
    try:
        beginning = read_bytes_at(path, offset=0, num_bytes=_BEGINNING_BYTES)
        looks_like = what_it_looks_like(beginning) if beginning else None
    except (OSError, FileUnreadable):
        looks_like = None
    return f"it {looks_like}" if looks_like else "it is not read under this name"

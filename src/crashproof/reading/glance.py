"""Read how a run stands at a glance.

A list of a thousand runs has 300 ms. `progress.json` has all that a row of it shows, and says which bytes of the
journals it includes; the session, with its last thousand updates, takes fifty times as long to read. So the file
counts where nothing has happened since: the run was closed in good order, and its journals are as long as they were.
Of all others, live ones among them, the journals are asked.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from operator import attrgetter

import msgspec

from crashproof.disk.lock import holder_of
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import NotARun
from crashproof.reading.run_state import read_run, read_snapshot
from crashproof.records.lines.lazy_decoder import LazyDecoder
from crashproof.records.progress import ProgressSummary
from crashproof.records.snapshots import ProgressSnapshot
from crashproof.records.states import RunStatus
from crashproof.rules.summary import last_seen, progress_summary

__all__ = ["Glance", "glance", "glance_at_snapshot"]

_values_of = attrgetter(*ProgressSummary.__struct_fields__)
_decoder = LazyDecoder[ProgressSnapshot](ProgressSnapshot)


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """How a run stands."""

    summary: ProgressSummary
    last_seen: float
    """When its newest record was written, in seconds since 1970."""
    num_damaged: int = 0
    """Damaged pieces in the part of the journals that was read."""


def glance(folder: RunFolder, *, now: float) -> Glance:
    """How a run stands at `now`, in seconds since 1970; read from `progress.json` where that is enough.

    Raises:
        NotARun: no session has begun here.
        NewerFormat, RecordsLost: see `read_run`.
    """
    return glance_at_snapshot(folder, now=now) or _read(folder, now)


def glance_at_snapshot(folder: RunFolder, *, now: float) -> Glance | None:
    """The same from `progress.json` alone; None where something may have happened since it was written."""
    snapshot = read_snapshot(folder.summary, _decoder)
    if snapshot is None or snapshot.last_seen is None or snapshot.journals is None:
        return None
    # Money that is reserved becomes money in doubt when the process is gone.
    if snapshot.status == RunStatus.RUNNING or snapshot.api_cost_reserved:
        return None
    if not (folder.session.exists() and _have_lengths(folder, snapshot.journals)):
        return None
    if snapshot.last_update_time is not None:
        snapshot.seconds_since_update = now - snapshot.last_update_time
    if snapshot.estimated_remaining_hours is not None:
        snapshot.estimated_finish_time = now + 3600.0 * snapshot.estimated_remaining_hours
    return _as_written(snapshot, snapshot.last_seen)


def _as_written(snapshot: ProgressSnapshot, seen: float) -> Glance:
    names = ProgressSummary.__struct_fields__
    summary = ProgressSummary(**dict(zip(names, _values_of(snapshot), strict=True)))
    # Only the writer knows it, and readers of journals do not say it either.
    summary.lines_waiting = msgspec.UNSET
    return Glance(summary=summary, last_seen=seen)


def _have_lengths(folder: RunFolder, journals: dict[str, int]) -> bool:
    """Whether every journal is as long as it was."""
    for name, num_bytes in journals.items():
        try:
            if os.stat(f"{folder.progress}/{name}").st_size != num_bytes:
                return False
        except FileNotFoundError:
            if num_bytes:
                return False
    return True


def _read(folder: RunFolder, now: float) -> Glance:
    state = read_run(folder)
    if state.session is None:
        raise NotARun(folder.root)
    session = state.session
    is_alive = holder_of(folder.lock) is not None
    # The last line of a live run may be half written at this moment.
    damages = [each for pieces in state.damages.values() for each in pieces if not (is_alive and each.is_torn_tail)]
    return Glance(
        summary=progress_summary(session, now=now, wall_clock_hours=session.wall_clock_hours, is_alive=is_alive),
        last_seen=last_seen(session),
        num_damaged=len(damages),
    )

"""Append events to a run that no process writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from crashproof.disk.files import storage_errors
from crashproof.disk.journal import append_durably
from crashproof.disk.journal_repair import repair_journal
from crashproof.disk.run_folder import RunFolder
from crashproof.reading.damage import damage_event
from crashproof.reading.run_state import RunState, read_run
from crashproof.records.events import Event
from crashproof.records.lines.codec import encode
from crashproof.records.session import TrainingSession

__all__ = ["append_between_attempts"]


def append_between_attempts(
    folder: RunFolder, events_of: Callable[[TrainingSession], Sequence[Event]], *, attempt: int, now: float
) -> None:
    """Append what `events_of` makes of the session, durably; the caller holds the run's lock.

    A line that a kill truncated is quarantined first: the next line would become part of it. `attempt` and `now` are
    for the event of that.

    Raises:
        StorageError, OSError: the events may be there in part.
        RecordsLost: the run cannot be read.
    """
    state = read_run(folder)
    repairs: list[Event] = []
    if folder.events.name in state.damages:
        repairs = _repair_events(folder, state, attempt, now)
        state = read_run(folder)
    assert state.session is not None
    lines = map(encode, [*repairs, *events_of(state.session)])
    append_durably(folder.events, lines, mark=state.marks[folder.events.name])


def _repair_events(folder: RunFolder, state: RunState, attempt: int, now: float) -> list[Event]:
    name = folder.events.name
    with storage_errors(folder.events):
        pieces = repair_journal(
            folder.events, quarantine=folder.quarantine / name, start=state.damages[name][0].offset
        )
    return [damage_event(folder, name, piece, timestamp=now, attempt=attempt) for piece in pieces]

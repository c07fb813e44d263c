"""Repair a run that no process writes."""

from __future__ import annotations

from pathlib import Path

from crashproof.checkpoints.quarantine import quarantine
from crashproof.checkpoints.verify import is_damaged, problem_with
from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.disk.journal import append_durably
from crashproof.disk.journal_repair import repair_journal
from crashproof.disk.lock import WriterLock
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import NotARun
from crashproof.reading.damage import damage_event
from crashproof.reading.run_state import JOURNALS, read_run
from crashproof.records.events import CheckpointSetAside, DamageFound, Event, Stamp
from crashproof.records.lines.codec import encode
from crashproof.records.session import TrainingSession
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.rules.summary import progress_summary
from crashproof.tracking.snapshots import SnapshotWriter, progress_file, session_bytes

__all__ = ["quarantine_unrecorded", "repair_run"]


def repair_run(folder: RunFolder, *, clock: Clock = SYSTEM_CLOCK, disk: Disk = REAL_DISK) -> list[str]:
    """Quarantine whatever is damaged, rebuild all snapshots, and return a description of each damage.

    Raises:
        RunInUse: a live process writes the run.
        NewerFormat: it was written by a newer version; nothing was changed.
    """
    lock = WriterLock(folder.lock, disk=disk, now=clock.now)
    try:
        read_run(folder, trust_snapshot=False)
        damages = {
            name: repair_journal(folder.progress / name, quarantine=folder.quarantine / name, disk=disk)
            for name in JOURNALS
        }
        state = read_run(folder, trust_snapshot=False)
        if state.session is None:
            raise NotARun(folder.root)
        events: list[Event] = [
            damage_event(folder, name, piece, timestamp=clock.now(), attempt=_last_attempt(state.session))
            for name, pieces in damages.items()
            for piece in pieces
        ]
        events += _quarantine_checkpoints(folder, state.session, clock, disk)
        _append(folder, events, disk)
        _rebuild_snapshots(folder, clock, disk)
    finally:
        lock.release()
    return [_description(event) for event in events]


def quarantine_unrecorded(
    refused: list[tuple[Path, int, str]], folder: RunFolder, *, clock: Clock = SYSTEM_CLOCK, disk: Disk = REAL_DISK
) -> None:
    """Quarantine checkpoints that no record knows, each a path, a step and a reason; the journal says so.

    Raises:
        RunInUse: a live process writes the run, and may be saving one of them.
    """
    disk.make_folders(folder.progress)
    lock = WriterLock(folder.lock, disk=disk, now=clock.now)
    try:
        session = read_run(folder).session
        attempt = 1 if session is None else _last_attempt(session)
        moved = [
            quarantine(
                path, folder, Stamp(timestamp=clock.now(), attempt=attempt), step=step, reason=reason, disk=disk
            )
            for path, step, reason in refused
        ]
        if session is not None:
            _append(folder, [event for event in moved if event is not None], disk)
    finally:
        lock.release()


def _quarantine_checkpoints(folder: RunFolder, session: TrainingSession, clock: Clock, disk: Disk) -> list[Event]:
    """Quarantine damaged checkpoints; a missing one may come back, so it stays recorded."""
    events: list[Event] = []
    for checkpoint in CheckpointCatalog(session).all():
        problem = problem_with(checkpoint, folder)
        if problem is None or not is_damaged(checkpoint, folder):
            continue
        event = quarantine(
            folder.find(checkpoint.checkpoint_path),
            folder,
            Stamp(timestamp=clock.now(), attempt=_last_attempt(session)),
            step=checkpoint.checkpoint_step,
            reason=problem,
            created_at=checkpoint.created_at,
            disk=disk,
        )
        if event is not None:
            events.append(event)
    return events


def _append(folder: RunFolder, events: list[Event], disk: Disk) -> None:
    if not events:
        return
    mark = read_run(folder, trust_snapshot=False).marks[folder.events.name]
    append_durably(folder.events, map(encode, events), mark=mark, disk=disk)


def _rebuild_snapshots(folder: RunFolder, clock: Clock, disk: Disk) -> None:
    state = read_run(folder, trust_snapshot=False)
    assert state.session is not None
    now = clock.now()
    writer = SnapshotWriter(folder, disk=disk)
    writer.write_session(session_bytes(state.session, state.marks, now=now))
    writer.write_manifest(state.session, now=now)
    summary = progress_summary(state.session, now=now, wall_clock_hours=state.session.wall_clock_hours)
    summary.lines_waiting = 0
    writer.write_summary(summary, progress_file(state.session, state.marks, now=now))


def _last_attempt(session: TrainingSession) -> int:
    return max((each.attempt for each in session.attempts), default=1)


def _description(event: Event) -> str:
    if isinstance(event, DamageFound):
        price = "" if event.cost is None else f" (${event.cost} had been paid for it)"
        return f"{event.file}, byte {event.offset:,}: {event.reason}{price}; kept in {event.moved_to}"
    assert isinstance(event, CheckpointSetAside)
    return f"{event.checkpoint_path}: {event.reason}; moved to {event.moved_to}"

"""Open a run, whatever state it is in.

There is one way to start: read what is there, set damage aside, and go on. A new folder is a run with nothing in
it yet.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from crashproof.checkpoints.delete import delete_removed, find_undeleted
from crashproof.clock import Clock
from crashproof.disk.archive import archive_session, interrupted_archiving
from crashproof.disk.atomic import remove_partials
from crashproof.disk.files import Disk, storage_errors
from crashproof.disk.journal import Damage, Journal, repair_journal
from crashproof.disk.lock import WriterLock
from crashproof.disk.queueing_journal import QueueingJournal
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import ConfigChanged, ConfigError
from crashproof.reading.damage import damage_event
from crashproof.reading.run_state import UNKNOWN_SESSION, RunState, read_run, read_total_cost
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.codec import encode
from crashproof.records.events import (
    AttemptStarted,
    CheckpointRecorded,
    CheckpointsDeleted,
    ConfigContinued,
    Event,
    SessionStarted,
    TargetChanged,
)
from crashproof.records.session import TrainingSession
from crashproof.records.snapshots import JournalMark
from crashproof.records.states import OnConfigChange
from crashproof.rules.identity import changed_keys, is_another_run
from crashproof.rules.session import take_event
from crashproof.tracking.requested_session import Identity

__all__ = [
    "OpenRun",
    "open_run",
]

log = logging.getLogger("crashproof")


@dataclass(slots=True, kw_only=True)
class OpenRun:
    """A run that this process may write."""

    folder: RunFolder
    lock: WriterLock
    session: TrainingSession
    attempt: int
    events: QueueingJournal
    metrics: QueueingJournal
    requests: QueueingJournal
    answers: QueueingJournal

    def marks(self) -> dict[str, JournalMark]:
        """Where each journal ends."""
        return {each.journal.path.name: each.journal.mark for each in self.journals()}

    def journals(self) -> tuple[QueueingJournal, ...]:
        """All four."""
        return self.events, self.metrics, self.requests, self.answers

    def close(self) -> None:
        """Let go of the files and of the right to write them."""
        self.close_files()
        self.lock.release()

    def close_files(self) -> None:
        """Let go of the files alone."""
        for each in self.journals():
            each.journal.close()


def open_run(folder: RunFolder, identity: Identity, *, clock: Clock, disk: Disk) -> OpenRun:
    """Take a run up and begin an attempt; see `ProgressTracker` for what can be raised."""
    _check(identity)
    with storage_errors(folder.progress):
        disk.make_folders(folder.progress)
    lock = WriterLock(folder.lock, disk=disk, now=clock.now)
    try:
        state, changed, damages = _found(folder, identity, clock=clock, disk=disk)
        run = _opened(folder, lock, state, disk)
    except BaseException:
        lock.release()
        raise
    try:
        _write_opening_events(run, identity, changed, damages, state.remembered, now=clock.now())
    except BaseException:
        run.close()
        raise
    return run


def _found(
    folder: RunFolder, identity: Identity, *, clock: Clock, disk: Disk
) -> tuple[RunState, list[str], dict[str, list[Damage]]]:
    """The session to go on with, the config keys that changed, and the damage that was set aside."""
    _finish_archiving(folder, disk)
    state = read_run(folder)
    remove_partials(folder.progress, disk=disk)
    remove_partials(folder.root, disk=disk)
    if state.session is not None:
        # Before anything else may take one of these names.
        delete_removed(state.session, folder, disk=disk)
    damages = _mended(folder, state, disk)
    remembered = state.remembered
    if state.session is None or damages:
        # Lines that had run together were taken apart, and offsets may have moved.
        state = read_run(folder)
        remembered = remembered or state.remembered
    changed: list[str] = []
    if state.session is not None:
        if state.session.config_hash:
            changed = changed_keys(state.session.config, identity.config)
        if _begins_anew(folder, state.session, identity, changed):
            _archive(folder, state.session.session_id, state.session, disk)
            state, changed, remembered = RunState(session=None), [], []
    # A session whose config nobody has told yet (it was adopted, or its first line was lost) gets it from the first
    # start that has one.
    if state.session is None or (identity.config_hash and not state.session.config_hash):
        _write_beginning(folder, identity, state.session, clock, disk)
        state = read_run(folder, trust_snapshot=False)
    state.remembered = remembered
    return state, changed, damages


def _opened(folder: RunFolder, lock: WriterLock, state: RunState, disk: Disk) -> OpenRun:
    def journal(path: Path) -> QueueingJournal:
        return QueueingJournal(Journal(path, mark=state.marks[path.name], disk=disk))

    assert state.session is not None
    return OpenRun(
        folder=folder,
        lock=lock,
        session=state.session,
        attempt=1 + max((each.attempt for each in state.session.attempts), default=0),
        events=journal(folder.events),
        metrics=journal(folder.metrics),
        requests=journal(folder.requests),
        answers=journal(folder.answers),
    )


def _check(identity: Identity) -> None:
    if identity.total_steps < 1:
        raise ConfigError(
            f"A run needs at least 1 step, got total_steps = {identity.total_steps}.",
            hint="Set the number of optimizer steps to train.",
        )
    name = identity.session_id
    if not name.strip() or name.startswith(".") or "/" in name or "\0" in name:
        raise ConfigError(
            f"A session_id names a folder of the archive, got {name!r}.",
            hint="Use letters, digits, dashes and underscores.",
        )


def _mended(folder: RunFolder, state: RunState, disk: Disk) -> dict[str, list[Damage]]:
    """Set aside what is broken in the journals; returns it by the journal's name."""
    damages = {}
    for name, pieces in state.damages.items():
        side_file = folder.quarantine / name
        damages[name] = repair_journal(
            folder.progress / name, quarantine=side_file, start=pieces[0].offset, disk=disk
        )
        log.warning(
            "%s was damaged: %d piece(s), the first at byte %d (%s). They are kept in %s; every whole line stays.",
            folder.progress / name,
            len(damages[name]),
            damages[name][0].offset,
            damages[name][0].reason,
            side_file,
        )
    return damages


def _begins_anew(folder: RunFolder, session: TrainingSession, identity: Identity, changed: list[str]) -> bool:
    if identity.is_fresh:
        log.warning("Beginning anew as asked; session %s goes to %s.", session.session_id, folder.archive)
        return True
    if not changed:
        return False
    if not is_another_run(session.config, identity.config):
        log.warning("Only secrets have changed (%s); session %s goes on.", "; ".join(changed), session.session_id)
        return False
    if identity.on_config_change == OnConfigChange.ERROR:
        raise ConfigChanged(folder.root, changed=changed)
    if identity.on_config_change == OnConfigChange.CONTINUE:
        log.warning("The config has changed (%s); session %s goes on.", "; ".join(changed), session.session_id)
        return False
    log.warning(
        "The config has changed (%s). Session %s goes to %s with its checkpoints; a new one begins.",
        "; ".join(changed),
        session.session_id,
        folder.archive,
    )
    return True


def _archive(folder: RunFolder, session_id: str, session: TrainingSession | None, disk: Disk) -> None:
    known = [*session.checkpoints.values(), *session.checkpoints_beside] if session else []
    archive_session(folder, session_id, [folder.find(each.checkpoint_path) for each in known], disk=disk)


def _finish_archiving(folder: RunFolder, disk: Disk) -> None:
    session_id = interrupted_archiving(folder)
    if session_id is not None:
        _archive(folder, session_id, read_run(folder, trust_snapshot=False).session, disk)


def _write_beginning(
    folder: RunFolder, identity: Identity, known: TrainingSession | None, clock: Clock, disk: Disk
) -> None:
    """Begin the session on disk; it is then read like any other."""
    name = None if known is None or known.session_id == UNKNOWN_SESSION else known.session_id
    beginning = SessionStarted(
        timestamp=clock.now(),
        attempt=1,
        session_id=identity.session_id if name is None else name,
        config=identity.config,
        config_hash=identity.config_hash,
        kind=identity.kind,
        total_steps=identity.total_steps,
        api_cost_before=read_total_cost(folder),
    )
    journal = Journal(folder.events, mark=JournalMark(), disk=disk)
    try:
        journal.append(encode(beginning))
        journal.sync()
    finally:
        journal.close()


def _write_opening_events(
    run: OpenRun,
    identity: Identity,
    changed: list[str],
    damages: dict[str, list[Damage]],
    remembered: list[CheckpointMetadata],
    *,
    now: float,
) -> None:
    session = run.session
    events: list[Event] = [
        AttemptStarted(
            timestamp=now,
            attempt=run.attempt,
            host=socket.gethostname(),
            pid=os.getpid(),
            git_commit=_git_commit(),
            wall_clock_hours=session.wall_clock_hours,
        )
    ]
    if run.folder.events.name in damages or run.events.journal.num_bytes == 0:
        # The line that was lost may have been the one that says which session this is.
        events.append(_beginning_again(session, run.attempt))
    if session.total_steps_target != identity.total_steps:
        events.append(TargetChanged(timestamp=now, attempt=run.attempt, total_steps=identity.total_steps))
    if changed:
        events.append(
            ConfigContinued(
                timestamp=now,
                attempt=run.attempt,
                config=identity.config,
                config_hash=identity.config_hash,
                changed=changed,
            )
        )
    if session.checkpoints_removing:
        left = find_undeleted(session, run.folder)
        events.append(CheckpointsDeleted(timestamp=now, attempt=run.attempt, left=left))
    events += [
        damage_event(run.folder, name, each, timestamp=now, attempt=run.attempt)
        for name, pieces in damages.items()
        for each in pieces
    ]
    for checkpoint in remembered:
        log.warning("The event of %s was lost; a snapshot still names it.", checkpoint.checkpoint_path)
        events.append(CheckpointRecorded(timestamp=now, attempt=run.attempt, checkpoint=checkpoint, seconds=0.0))
    for event in events:
        run.events.append_now(encode(event))
        take_event(session, event)
    run.events.journal.sync()


def _beginning_again(session: TrainingSession, attempt: int) -> SessionStarted:
    return SessionStarted(
        timestamp=session.start_time,
        attempt=attempt,
        session_id=session.session_id,
        config=session.config,
        config_hash=session.config_hash,
        kind=session.kind,
        total_steps=session.total_steps_target,
        api_cost_before=session.api_cost_before,
    )


def _git_commit() -> str | None:
    """The commit of the code that is training, where it is in a git checkout."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607 - whichever git the user has
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None

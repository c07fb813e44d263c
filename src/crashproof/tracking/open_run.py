"""Open a run, whatever state it is in.

There is one way to start: read what is there, quarantine damage, and continue. A new folder is a run with nothing in
it yet.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from msgspec import UNSET, Struct

from crashproof.checkpoints.delete import delete_removed, find_undeleted
from crashproof.checkpoints.loose import find_loose
from crashproof.clock import BootClock, Clock
from crashproof.disk.archive import archive_session, interrupted_archiving
from crashproof.disk.atomic import remove_partials
from crashproof.disk.files import Disk, storage_errors
from crashproof.disk.journal import Damage, Journal
from crashproof.disk.journal_repair import repair_journal
from crashproof.disk.lock import WriterLock
from crashproof.disk.queueing_journal import QueueingJournal
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import ConfigChanged, RecordsLost, StorageUnwritable
from crashproof.hosts import host_name
from crashproof.reading.damage import damage_event
from crashproof.reading.run_state import RunState, read_run, read_total_cost
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.events import (
    AttemptStarted,
    CheckpointRecorded,
    CheckpointsDeleted,
    ConfigContinued,
    Event,
    SessionStarted,
    TargetChanged,
)
from crashproof.records.lines.codec import encode
from crashproof.records.session import UNKNOWN_SESSION, TrainingSession
from crashproof.records.snapshots import JournalMark
from crashproof.records.states import OnConfigChange
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.rules.identity import NO_DIFFERENCE, Comparison, compare_configs
from crashproof.rules.session import apply_event
from crashproof.tracking.requested_session import RequestedSession

__all__ = ["OpenRun", "open_run", "restate_beginning"]

log = logging.getLogger("crashproof")


class OpenRun(Struct, kw_only=True):
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
        """All of them."""
        return self.events, self.metrics, self.requests, self.answers

    def close(self) -> None:
        """Close the files and release the lock."""
        self.close_files()
        self.lock.release()

    def close_files(self) -> None:
        """Close the files, but keep the lock."""
        for each in self.journals():
            each.journal.close()


def open_run(folder: RunFolder, requested: RequestedSession, *, clock: Clock, disk: Disk) -> OpenRun:
    """Open a run and begin an attempt; see `ProgressTracker` for what is raised."""
    with storage_errors(folder.progress):
        disk.make_folders(folder.progress)
    lock = WriterLock(folder.lock, disk=disk, now=clock.now)
    try:
        state, changed, damages = _find_session(folder, requested, clock=clock, disk=disk)
        run = _open_journals(folder, lock, state, disk)
    except BaseException:
        lock.release()
        raise
    try:
        _write_opening_events(run, requested, changed, damages, state.remembered, clock=clock)
    except BaseException:
        run.close()
        raise
    return run


def _find_session(
    folder: RunFolder, requested: RequestedSession, *, clock: Clock, disk: Disk
) -> tuple[RunState, list[str], dict[str, list[Damage]]]:
    """Read the run, and begin a session if needed; return the state, the changed config keys and the damage."""
    _finish_archiving(folder, disk)
    _require_records(folder, requested, disk)
    state, damages = _recover(folder, disk)
    found = NO_DIFFERENCE
    if state.session is not None and state.session.config_hash:
        found = compare_configs(state.session.config, requested.config, requested.rules)
    changed = [*found.changed, *found.not_counting]
    if state.session is not None and _begins_anew(folder, state.session, requested, found):
        _archive(folder, state.session.session_id, state.session, disk)
        state, changed = RunState(session=None), []
    # A session without a config (adopted, or its first line was lost) gets that of the first start that has one.
    if state.session is None or (requested.config_hash and not state.session.config_hash):
        _write_beginning(folder, requested, state.session, clock, disk)
        remembered, state = state.remembered, read_run(folder, trust_snapshot=False)
        state.remembered = remembered
    return state, changed, damages


def _recover(folder: RunFolder, disk: Disk) -> tuple[RunState, dict[str, list[Damage]]]:
    """Finish what a crash has interrupted, repair the journals, and read the run."""
    state = read_run(folder, accepts_loss=True)
    _remove_partials(folder, state.session, disk)
    if state.session is not None:
        # Before anything else may take one of these names.
        _delete_removed(folder, state.session, disk)
    for name, num_lines in state.missing_lines.items():
        if num_lines <= len(state.damages.get(name, ())):
            continue
        log.warning(
            "%s has lost %d lines that session.json had counted; what is left is kept.",
            folder.progress / name,
            num_lines,
        )
    damages = _repair_journals(folder, state, disk)
    if state.session is None or damages or state.reformatted:
        # A repair separates lines that were joined, and moves offsets.
        remembered, state = state.remembered, read_run(folder, accepts_loss=True)
        state.remembered = remembered or state.remembered
    return state, damages


def _delete_removed(folder: RunFolder, session: TrainingSession, disk: Disk) -> None:
    try:
        delete_removed(session, folder, disk=disk)
    except StorageUnwritable as error:
        # A stale checkpoint costs space, and opening a run must not fail.
        log.warning("Checkpoints that are no longer kept cannot be deleted: %s", error)


def _remove_partials(folder: RunFolder, session: TrainingSession | None, disk: Disk) -> None:
    """Remove what interrupted writes have left where the run and its checkpoints lie; in no folder behind a link."""
    folders = {folder.progress, folder.root}
    if session is not None:
        catalog = CheckpointCatalog(session)
        recorded = [each.checkpoint_path for each in catalog.all()]
        recorded += [each.checkpoint_path for each in catalog.quarantined()]
        recorded += [each.checkpoint_path for each in catalog.being_removed()]
        parents = {Path(os.path.abspath(folder.root / each)).parent for each in recorded}
        folders |= {each for each in parents if folder.may_move(each) and not folder.is_behind_link(each)}
    for each in sorted(folders):
        try:
            remove_partials(each, disk=disk)
        except OSError as error:
            # It costs space, and opening a run must not fail.
            log.warning("Could not remove a partial file in %s: %s", each, error.strerror)


def _open_journals(folder: RunFolder, lock: WriterLock, state: RunState, disk: Disk) -> OpenRun:
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


def _require_records(folder: RunFolder, requested: RequestedSession, disk: Disk) -> None:
    """Begin nothing over a run whose records are lost; a fresh session archives what is left of it.

    Where checkpoints are all that is left, another system may have saved them, which resumes from them by itself.

    Raises:
        RecordsLost: names what is left.
    """
    state = read_run(folder, accepts_loss=True)
    if not state.lost and state.session is not None and _is_known(state.session):
        return
    found = [*state.lost, *find_loose(folder)]
    if not found or requested.accepts_loss:
        return
    if not requested.is_fresh:
        if state.lost:
            raise RecordsLost(folder.root, found=found)
        log.warning("%s A new session begins beside them.", RecordsLost(folder.root, found=found))
        return
    log.warning(
        "A new session begins, as requested. What is left of an earlier one, whose records are lost, is moved to %s: "
        "%s.",
        archive_session(folder, "lost", folder.own_checkpoints(), disk=disk),
        ", ".join(path for path, _ in found),
    )


def _is_known(session: TrainingSession) -> bool:
    """Whether anything at all of a session can be read."""
    has_recorded = session.highest_step or CheckpointCatalog(session).all()
    return session.session_id != UNKNOWN_SESSION or bool(has_recorded)


def _repair_journals(folder: RunFolder, state: RunState, disk: Disk) -> dict[str, list[Damage]]:
    """Quarantine the damaged parts of journals; return them by the journal's name."""
    damages = {}
    for name, lines in state.reformatted.items():
        log.warning(
            "Another program has rewritten %s: white space around %d records has changed (line ends, a byte order "
            "mark, indentation). All of them are intact, and are written again as they were.",
            folder.progress / name,
            lines.num_lines,
        )
    starts = {name: pieces[0].offset for name, pieces in state.damages.items()}
    starts |= {name: min(lines.offset, starts.get(name, lines.offset)) for name, lines in state.reformatted.items()}
    for name, start in starts.items():
        side_file = folder.quarantine / name
        found = repair_journal(folder.progress / name, quarantine=side_file, start=start, disk=disk)
        if not found:
            continue
        damages[name] = found
        log.warning(
            "%s had %d damaged part(s), the first at byte %d (%s). They are in %s now; all intact lines are kept.",
            folder.progress / name,
            len(damages[name]),
            damages[name][0].offset,
            damages[name][0].reason,
            side_file,
        )
    return damages


def _begins_anew(folder: RunFolder, session: TrainingSession, requested: RequestedSession, found: Comparison) -> bool:
    if requested.is_fresh:
        log.warning(
            "A new session begins, as requested; session %s is moved to %s.", session.session_id, folder.archive
        )
        return True
    changed = "; ".join(found.changed)
    if not found.is_another_run:
        _tell_what_does_not_count(session, found, changed)
        return False
    if requested.on_config_change == OnConfigChange.ERROR:
        raise ConfigChanged(folder.root, changed=found.changed, how_to_keep=found.how_to_keep)
    if requested.on_config_change == OnConfigChange.CONTINUE:
        log.warning("The config has changed (%s); session %s continues.", changed, session.session_id)
        _warn_of_consequences(found)
        return False
    log.warning(
        "The config has changed (%s). Session %s is moved to %s with its checkpoints; a new one begins. "
        "To continue instead, pass %s.",
        changed,
        session.session_id,
        folder.archive,
        found.how_to_keep,
    )
    return True


def _tell_what_does_not_count(session: TrainingSession, found: Comparison, changed: str) -> None:
    if changed:
        log.warning("Only secrets have changed (%s); session %s continues.", changed, session.session_id)
    if found.not_counting:
        log.info(
            "Config keys that do not count have changed: %s. Session %s continues.",
            "; ".join(found.not_counting),
            session.session_id,
        )
    _warn_of_consequences(found)


def _warn_of_consequences(found: Comparison) -> None:
    # The event of the change makes this the known config, so that the next start has nothing to say.
    for note in found.notes:
        log.warning("%s.", note)


def _archive(folder: RunFolder, session_id: str, session: TrainingSession | None, disk: Disk) -> None:
    known = CheckpointCatalog(session).all() if session else []
    archive_session(folder, session_id, [folder.find(each.checkpoint_path) for each in known], disk=disk)


def _finish_archiving(folder: RunFolder, disk: Disk) -> None:
    session_id = interrupted_archiving(folder)
    if session_id is not None:
        _archive(folder, session_id, read_run(folder, trust_snapshot=False, accepts_loss=True).session, disk)


def _write_beginning(
    folder: RunFolder, requested: RequestedSession, known: TrainingSession | None, clock: Clock, disk: Disk
) -> None:
    """Journal the beginning of the session, which is then read like any other."""
    session_id = requested.session_id
    if known is not None and known.session_id != UNKNOWN_SESSION:
        session_id = known.session_id
    beginning = SessionStarted(
        timestamp=clock.now(),
        attempt=1,
        session_id=session_id,
        config=requested.config,
        config_hash=requested.config_hash,
        kind=requested.kind,
        total_steps=requested.total_steps,
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
    requested: RequestedSession,
    changed: list[str],
    damages: dict[str, list[Damage]],
    remembered: list[CheckpointMetadata],
    *,
    clock: Clock,
) -> None:
    session, now = run.session, clock.now()
    boot_clock = clock if isinstance(clock, BootClock) else None
    events: list[Event] = [
        AttemptStarted(
            timestamp=now,
            attempt=run.attempt,
            host=host_name(),
            pid=os.getpid(),
            git_commit=_git_commit(),
            wall_clock_hours=session.wall_clock_hours,
            boot_id=boot_clock.boot_id() if boot_clock else UNSET,
            since_boot=boot_clock.since_boot() if boot_clock else UNSET,
        )
    ]
    if run.folder.events.name in damages or run.events.journal.num_bytes == 0:
        # The lost line may have been the one that identifies the session.
        events.append(restate_beginning(session, run.attempt))
    if session.total_steps_target != requested.total_steps:
        events.append(TargetChanged(timestamp=now, attempt=run.attempt, total_steps=requested.total_steps))
    if changed:
        events.append(
            ConfigContinued(
                timestamp=now,
                attempt=run.attempt,
                config=requested.config,
                config_hash=requested.config_hash,
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
        log.warning("The event of %s was lost; it is restored from a snapshot.", checkpoint.checkpoint_path)
        events.append(CheckpointRecorded(timestamp=now, attempt=run.attempt, checkpoint=checkpoint, seconds=0.0))
    for event in events:
        run.events.append_now(encode(event))
        apply_event(session, event)
    run.events.journal.sync()


def restate_beginning(session: TrainingSession, attempt: int) -> SessionStarted:
    """The event of a session's beginning, for a journal that has lost it."""
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
    """The commit of the working folder, if it is in a git checkout."""
    # One process of a run asks git; every rank and every worker of a data loader imports this module.
    import subprocess

    try:
        completed = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607 - whichever git the user has
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return completed.stdout.strip() or None

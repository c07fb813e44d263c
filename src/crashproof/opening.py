"""Open a run, whatever state it is in.

There is one way to start: read what is there, set damage aside, and go on. A new folder is a run with nothing in
it yet.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crashproof.checkpoints import delete_removed, left_of_removal
from crashproof.clock import Clock
from crashproof.disk.archive import archive_session, interrupted_archiving
from crashproof.disk.atomic import remove_partials
from crashproof.disk.files import Disk, storage_errors
from crashproof.disk.journal import Damage, Journal, mend
from crashproof.disk.lock import WriterLock
from crashproof.disk.patient import PatientJournal
from crashproof.disk.run_folder import RunFolder
from crashproof.encoding import encode
from crashproof.errors import ConfigChanged, ConfigError, InvalidMetric
from crashproof.reader import UNKNOWN_SESSION, RunState, paid_so_far, read_run
from crashproof.records import (
    AttemptStarted,
    CheckpointMetadata,
    CheckpointRecorded,
    CheckpointsDeleted,
    ConfigContinued,
    DamageFound,
    Event,
    JournalMark,
    SessionStarted,
    TargetChanged,
    TrainingSession,
)
from crashproof.responses import price_left_in
from crashproof.rules.identity import canonical_config, changed_keys, config_hash
from crashproof.rules.session import take_event
from crashproof.scalars import as_int

__all__ = ["Identity", "OpenRun", "damage_found", "open_run"]

log = logging.getLogger("crashproof")

ON_CONFIG_CHANGE = ("archive", "continue", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which session the caller wants to write."""

    session_id: str
    """For a session that is new."""
    config: dict[str, Any]
    """Canonical, without secrets."""
    config_hash: str
    """Empty where the caller has no config: the session goes on with its own, or waits for one."""
    total_steps: int
    on_config_change: str
    """`archive`: set the old session aside and begin anew; `continue`; or `error`."""
    is_fresh: bool
    """Begin anew even where the config is the same."""

    @classmethod
    def of(
        cls,
        config: Any,
        total_steps: Any,
        *,
        session_id: str | None,
        on_config_change: str,
        is_fresh: bool,
    ) -> Identity:
        """What a caller's arguments mean.

        Raises:
            ConfigError: `config` is no mapping, or `total_steps` no whole number.
        """
        if not isinstance(config, Mapping):
            raise ConfigError(
                f"A config must be a mapping, got {type(config).__name__}.",
                hint="Pass a dict, such as a YAML mapping.",
            )
        try:
            num_steps = as_int(total_steps, "total_steps")
        except InvalidMetric as error:
            raise ConfigError(error.message, hint="Set the number of optimizer steps to train.") from error
        canonical = canonical_config(config)
        return cls(
            session_id=session_id or f"training_{secrets.token_hex(6)}",
            config=canonical,
            config_hash=config_hash(canonical),
            total_steps=num_steps,
            on_config_change=on_config_change,
            is_fresh=is_fresh,
        )


@dataclass(slots=True, kw_only=True)
class OpenRun:
    """A run that this process may write."""

    folder: RunFolder
    lock: WriterLock
    session: TrainingSession
    attempt: int
    events: PatientJournal
    metrics: PatientJournal
    requests: PatientJournal
    answers: PatientJournal

    def marks(self) -> dict[str, JournalMark]:
        """Where each journal ends."""
        return {each.journal.path.name: each.journal.mark for each in self.journals()}

    def journals(self) -> tuple[PatientJournal, ...]:
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
    def journal(path: Path) -> PatientJournal:
        return PatientJournal(Journal(path, mark=state.marks[path.name], disk=disk))

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
    if identity.on_config_change not in ON_CONFIG_CHANGE:
        raise ConfigError(
            f"on_config_change must be one of {', '.join(ON_CONFIG_CHANGE)}, got {identity.on_config_change!r}."
        )


def _mended(folder: RunFolder, state: RunState, disk: Disk) -> dict[str, list[Damage]]:
    """Set aside what is broken in the journals; returns it by the journal's name."""
    damages = {}
    for name, pieces in state.damages.items():
        side_file = folder.set_aside / name
        damages[name] = mend(folder.progress / name, set_aside=side_file, start=pieces[0].offset, disk=disk)
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
    if identity.on_config_change == "error":
        raise ConfigChanged(folder.root, changed=changed)
    if identity.on_config_change == "continue":
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
        total_steps=identity.total_steps,
        api_cost_before=paid_so_far(folder),
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
        left = left_of_removal(session, run.folder)
        events.append(CheckpointsDeleted(timestamp=now, attempt=run.attempt, left=left))
    events += [
        damage_found(run.folder, name, each, timestamp=now, attempt=run.attempt)
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


def damage_found(folder: RunFolder, name: str, piece: Damage, *, timestamp: float, attempt: int) -> DamageFound:
    """The event of a broken piece that was moved out of a journal; of an answer, with its price."""
    return DamageFound(
        timestamp=timestamp,
        attempt=attempt,
        file=name,
        offset=piece.offset,
        num_bytes=len(piece.content),
        reason=piece.reason,
        moved_to=folder.spell(folder.set_aside / name),
        cost=price_left_in(piece.content) if name == folder.answers.name else None,
    )


def _beginning_again(session: TrainingSession, attempt: int) -> SessionStarted:
    return SessionStarted(
        timestamp=session.start_time,
        attempt=attempt,
        session_id=session.session_id,
        config=session.config,
        config_hash=session.config_hash,
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

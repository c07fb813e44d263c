"""The writer of a run's records."""

from __future__ import annotations

import copy
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from crashproof.clock import Clock
from crashproof.disk.files import Disk
from crashproof.disk.journal import Interference
from crashproof.disk.restored_journal import Restoration, restore_journal
from crashproof.errors import DiskFull, StorageError
from crashproof.hosts import host_name
from crashproof.records.events import (
    AttemptStarted,
    BadStepFound,
    CheckpointRecorded,
    DamageFound,
    DataLeftOut,
    EvaluationRecorded,
    Event,
    Stamp,
)
from crashproof.records.lines.codec import encode
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.progress import ProgressSummary
from crashproof.records.session import TrainingSession
from crashproof.records.snapshots import ProgressFile
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.rules.session import apply_event, apply_updates
from crashproof.rules.summary import progress_summary
from crashproof.tracking.metrics.curve_writer import CurveWriter
from crashproof.tracking.metrics.journalled_update import JournalledUpdate
from crashproof.tracking.open_run import OpenRun, restate_beginning
from crashproof.tracking.settings import TrackerSettings
from crashproof.tracking.snapshots import SnapshotWriter, progress_file, session_bytes

__all__ = ["RunWriter"]

log = logging.getLogger("crashproof")

MOST_UNAPPLIED = 8192
"""Updates that wait to be applied: those of a second, if a step takes at least 120 µs; some 5 MB."""
_FEW = 8
"""Of them, applied by the loop itself where it is faster than that."""
_UNWRITTEN_SECONDS = 10.0
"""What cannot be written for less is not worth an alert."""


class RunWriter:
    """Journals a record first, then applies it to the session. Not thread-safe: its owner locks."""

    def __init__(self, run: OpenRun, *, settings: TrackerSettings, clock: Clock, disk: Disk) -> None:
        self.run = run
        self._session: TrainingSession = run.session
        self._append, self._metrics = run.metrics.append, run.metrics.journal
        self._unapplied: deque[JournalledUpdate] = deque()
        """Updates that are in the journal, and that the session does not include yet."""
        # What the alerts and the run's store of answers need of it.
        self.folder, self.attempt = run.folder, run.attempt
        self.answers, self.requests = run.answers, run.requests
        self._settings = settings
        self._clock = clock
        self._disk = disk
        self._snapshots = SnapshotWriter(run.folder, disk=disk)
        self._curves = CurveWriter(run.folder, run.metrics.journal, disk=disk)
        self._refusals: dict[str, StorageError | OSError] = {}
        """What `keep_trying` could not do at the last try, and why."""
        self._unwritten_since: float | None = None
        """By the steady clock."""
        self._session_written_at = clock.steady()
        self._lines_at_session_file = -1

    @property
    def session(self) -> TrainingSession:
        """The state of the session, all updates included."""
        if self._unapplied:
            self.apply_updates()
        return self._session

    @property
    def num_unapplied(self) -> int:
        """Updates that the session does not include yet."""
        return len(self._unapplied)

    @property
    def newest_update(self) -> MetricsSnapshot | None:
        """The last update of the canonical history."""
        history = self.session.metrics_history
        return history[-1] if history else None

    @property
    def rewinds(self) -> int:
        """How often this attempt has gone back to an earlier step."""
        attempts = self.session.attempts
        return next((each.rewinds for each in reversed(attempts) if each.attempt == self.attempt), 0)

    @property
    def num_queued(self) -> int:
        """Lines that wait for a full disk."""
        return sum(each.num_queued for each in self.run.journals())

    def stamp(self) -> Stamp:
        """Time and attempt, for an event of this moment."""
        return Stamp(timestamp=self._clock.now(), attempt=self.run.attempt)

    def keep_update(self, update: MetricsSnapshot) -> None:
        """Write one update, now or as soon as the disk has space; the session includes it when it is asked for."""
        is_written = self._append(encode(update))
        journal, unapplied = self._metrics, self._unapplied
        unapplied.append(
            JournalledUpdate(update, journal.last_checksum, journal.num_bytes, journal.num_lines, is_written)
        )
        if len(unapplied) >= MOST_UNAPPLIED:
            self.apply_updates(_FEW)

    def apply_updates(self, most: int = MOST_UNAPPLIED) -> None:
        """Apply the oldest updates that the session does not include yet, at most so many."""
        unapplied = self._unapplied
        journalled = [unapplied.popleft() for _ in range(min(most, len(unapplied)))]
        parts = apply_updates(self._session, [each.update for each in journalled])
        for place, each in enumerate(journalled):
            self._curves.add(each, is_part=place in parts)

    def keep(self, event: Event) -> None:
        """Write an event, now or as soon as the disk has space."""
        self.run.events.append(encode(event))
        apply_event(self.session, event)

    def keep_durably(self, event: Event) -> None:
        """Write an event that survives a power loss when this returns, with the metrics before it.

        Raises:
            StorageError, OSError: it is not written.
        """
        self.run.metrics.journal.sync()
        self.run.events.append_now(encode(event))
        self.run.events.journal.sync()
        apply_event(self.session, event)

    def write_queued(self) -> None:
        """Try to write the lines that wait for space."""
        for each in self.run.journals():
            each.write_queued()

    def raise_if_queued(self) -> None:
        """Raise what kept a line from being written, if any still waits for space.

        Raises:
            StorageError, OSError: the limit that was reached, or what else refused it.
        """
        for each in self.run.journals():
            if each.num_queued:
                raise each.refusal or DiskFull(each.journal.path)

    def sync(self) -> None:
        """Make everything in the journals durable."""
        for each in self.run.journals():
            if each.journal.has_unsynced:
                each.journal.sync()

    def keep_trying(self, work: Callable[[], None], *, trouble: str) -> None:
        """Do what the disk may refuse, and what a later call tries again; `trouble` says what is wrong meanwhile.

        The log says so once, and `unwritten` until it succeeds.
        """
        try:
            work()
        except (StorageError, OSError) as error:
            if trouble not in self._refusals:
                log.warning("%s%s: %s", trouble[0].upper(), trouble[1:], error)
            self._refusals[trouble] = error
        else:
            self._refusals.pop(trouble, None)

    def unwritten(self) -> str:
        """What of the run's records has not reached the disk for a while, and why; empty if all has.

        What it does not tell at once may be over at the next look.
        """
        found = "; ".join(self._troubles())
        now = self._clock.steady()
        if not found:
            self._unwritten_since = None
            return ""
        if self._unwritten_since is None:
            self._unwritten_since = now
        return found if now - self._unwritten_since >= _UNWRITTEN_SECONDS else ""

    def _troubles(self) -> Iterator[str]:
        waiting = [each for each in self.run.journals() if each.num_queued]
        if waiting:
            why = next((_reason(each.refusal) for each in waiting if each.refusal is not None), "the disk takes none")
            yield f"{sum(each.num_queued for each in waiting):,} records wait in memory: {why}"
        # Other threads may change these meanwhile.
        if stale := list(self._snapshots.refusals.items()):
            names = ", ".join(path.name for path, _ in stale)
            yield f"snapshots that cannot be replaced ({names}) are out of date: {_reason(stale[0][1])}"
        for trouble, refusal in list(self._refusals.items()):
            yield f"{trouble}: {_reason(refusal)}"

    def abandon(self) -> None:
        """Write nothing more to the journals; what is kept from now on is only queued."""
        for each in self.run.journals():
            each.journal.abandon()

    def restore_journals(self, altered: Mapping[Path, Interference]) -> list[Restoration]:
        """Write journals again that were edited or removed, from what is left of them and what the session knows.

        Raises:
            DiskFull, StorageUnwritable: some are not written yet.
        """
        restored = [
            restore_journal(
                each.journal,
                altered[each.journal.path],
                self._known_lines(each.journal.path),
                quarantine=self.folder.quarantine,
                disk=self._disk,
            )
            for each in self.run.journals()
            if each.journal.path in altered
        ]
        self.apply_updates()
        self._curves.begin_again()
        for each in restored:
            moved_to = "" if each.moved_to is None else self.folder.recorded_path(each.moved_to)
            self.keep(
                DamageFound(
                    **self.stamp(), file=each.name, offset=0, num_bytes=0, reason=str(each), moved_to=moved_to
                )
            )
        return restored

    def _known_lines(self, journal: Path) -> Iterator[bytes]:
        """The newest lines of a journal as far as the session knows them, in order."""
        if journal == self.folder.metrics:
            yield from map(encode, self.session.metrics_history)
        elif journal == self.folder.events:
            yield from map(encode, self._known_events())

    def _known_events(self) -> Iterator[Event]:
        """What a run needs to be resumed, as far as the session knows it."""
        yield restate_beginning(self.session, self.run.attempt)
        for each in self.session.attempts:
            if each.start is not None:
                yield AttemptStarted(
                    timestamp=each.start,
                    attempt=each.attempt,
                    host=each.host,
                    pid=each.pid,
                    git_commit=each.git_commit,
                    wall_clock_hours=each.hours_at_start or 0.0,
                )
        for checkpoint in CheckpointCatalog(self.session).all():
            yield CheckpointRecorded(
                timestamp=checkpoint.created_at, attempt=checkpoint.attempt, checkpoint=checkpoint, seconds=0.0
            )
        for evaluation in self.session.evaluations:
            yield EvaluationRecorded(
                timestamp=evaluation.timestamp,
                attempt=evaluation.attempt,
                step=evaluation.step,
                results=evaluation.results,
                seconds=0.0,
                nonfinite=evaluation.nonfinite,
            )
        yield from self._known_bad_steps()

    def _known_bad_steps(self) -> Iterator[Event]:
        """The bad steps that are remembered, and the samples that are left out."""
        for each in self.session.bad_steps:
            yield BadStepFound(
                timestamp=each.timestamp,
                attempt=each.attempt,
                step=each.step,
                cause=each.cause,
                loss=each.loss,
                usual=each.usual,
                limit=each.limit,
                num_losses=each.num_losses,
                data=each.data,
                action=each.action,
            )
        if self.session.data_left_out:
            yield DataLeftOut(**self.stamp(), step=0, data=self.session.data_left_out)

    def rescue(self) -> list[Path]:
        """Write to quarantine what is in no journal of the run; return the files.

        That is what is queued, and each journal whose file is not at its path any more: it goes with this process.

        Raises:
            StorageError, OSError: some of it is only in memory.
        """
        files = []
        for each in self.run.journals():
            name = f"{each.journal.path.name}.{host_name()}-{os.getpid()}"
            side_file = self.folder.quarantine / name
            if each.journal.find_interference() in (Interference.REMOVED, Interference.REPLACED):
                each.journal.rescue(side_file)
            if each.num_queued:
                each.rescue(side_file, disk=self._disk)
            if side_file.exists():
                files.append(side_file)
        return files

    def close(self) -> None:
        """Close the files and release the lock."""
        self._curves.close()
        self.run.close()

    def close_files(self) -> None:
        """Close the files, but keep the lock."""
        self._curves.close()
        self.run.close_files()

    def summary(self, session: TrainingSession, *, wall_clock_hours: float, num_pending: int) -> ProgressSummary:
        """The summary for `progress.json`."""
        summary = progress_summary(session, now=self._clock.now(), wall_clock_hours=wall_clock_hours)
        summary.lines_waiting = self.num_queued + num_pending
        return summary

    def session_as_of_now(self) -> TrainingSession:
        """A copy of the session that later records do not change, for use without the lock."""
        session = copy.copy(self.session)
        session.metrics_history = list(session.metrics_history)
        session.loss_buckets = list(session.loss_buckets)
        session.pace = list(session.pace)
        session.pause_times = list(session.pause_times)
        session.checkpoints = dict(session.checkpoints)
        session.checkpoints_beside = list(session.checkpoints_beside)
        session.checkpoints_overwritten = list(session.checkpoints_overwritten)
        session.checkpoints_superseded = list(session.checkpoints_superseded)
        session.checkpoints_set_aside = list(session.checkpoints_set_aside)
        session.evaluations = list(session.evaluations)
        session.attempts = [copy.copy(attempt) for attempt in session.attempts]
        session.api_responses_marked = list(session.api_responses_marked)
        session.api_requests_open = dict(session.api_requests_open)
        session.goodput = copy.copy(session.goodput)
        session.alerts_active = dict(session.alerts_active)
        session.alerts = list(session.alerts)
        session.bad_steps = list(session.bad_steps)
        return session

    def are_snapshots_gone(self) -> bool:
        """Whether something else has removed a snapshot that can be written again now."""
        if self._has_unread():
            return False
        return not all(each.exists() for each in (self.folder.session, self.folder.manifest, self.folder.summary))

    def progress_file(self) -> ProgressFile:
        """What `progress.json` says besides the summary, as of now."""
        marks = None if self._has_unread() else self.run.marks()
        return progress_file(self.session, marks, now=self._clock.now())

    def write_summary(self, summary: ProgressSummary, file: ProgressFile) -> None:
        """Replace `progress.json`; needs no lock, as both are of an earlier moment."""
        self._snapshots.write_summary(summary, file)

    def write_manifest(self) -> None:
        """Replace `checkpoints.json`."""
        self._snapshots.write_manifest(self.session, now=self._clock.now())

    @property
    def is_session_file_due(self) -> bool:
        """Whether `session.json` is old enough to be replaced."""
        num_lines = self.run.metrics.journal.mark.num_lines - self._lines_at_session_file
        if num_lines >= self._settings.session_interval_lines:
            return True
        return self._clock.steady() - self._session_written_at >= self._settings.session_interval_seconds

    def session_content(self) -> bytes | None:
        """The content for `session.json`.

        None while lines wait for space and are in no journal, or if a journal has lines of another process: the next
        start reads them behind the older file.
        """
        if self._has_unread():
            return None
        marks = self.run.marks()
        self._lines_at_session_file = marks[self.run.metrics.journal.path.name].num_lines
        self._session_written_at = self._clock.steady()
        return session_bytes(self.session, marks, now=self._clock.now())

    def _has_unread(self) -> bool:
        """Whether the journals and the session differ: lines wait for space, or another process has added some."""
        return bool(self.num_queued) or any(each.journal.has_foreign_lines for each in self.run.journals())

    def write_session(self, content: bytes | None) -> None:
        """Replace `session.json`, unless the content is None; needs no lock, as an older one is valid too."""
        if content is not None:
            self._snapshots.write_session(content)


def _reason(refusal: StorageError | OSError) -> str:
    """What happened, as the end of a sentence."""
    return (refusal.message if isinstance(refusal, StorageError) else str(refusal)).rstrip(".")

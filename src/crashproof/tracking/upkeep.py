"""Do the work between a loop's calls."""

from __future__ import annotations

import logging
from collections.abc import Callable

from crashproof.alerts.monitor import AlertMonitor
from crashproof.answers.run_store import RunResponses
from crashproof.clock import Clock
from crashproof.disk.sole_writer import Intrusion, SoleWriter
from crashproof.errors import StorageError
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.progress import ProgressSummary
from crashproof.records.snapshots import ProgressFile
from crashproof.tracking.checkpoint_recorder import CheckpointRecorder
from crashproof.tracking.checkpoint_removal import CheckpointRemoval
from crashproof.tracking.heartbeat import give_way
from crashproof.tracking.metrics.recorder import MetricsRecorder
from crashproof.tracking.run_guard import RunGuard
from crashproof.tracking.run_writer import RunWriter

__all__ = ["Upkeep"]

log = logging.getLogger("crashproof")

_UPDATES_AT_ONCE = 64
"""Applied to the session while the lock is held: they take less than 0.1 ms."""


class Upkeep:
    """Syncs, writes snapshots, checks for alerts, and for others who write the run as well.

    `beat` is the regular call, in a background thread; the tracker calls the parts where nothing may wait for it.
    """

    def __init__(
        self,
        writer: RunWriter,
        guard: RunGuard,
        *,
        metrics: MetricsRecorder,
        checkpoints: CheckpointRecorder,
        removal: CheckpointRemoval,
        responses: RunResponses,
        alerts: AlertMonitor,
        clock: Clock,
    ) -> None:
        run = writer.run
        self._writer = writer
        self._guard = guard
        self._sole_writer = SoleWriter(run.lock, [each.journal for each in run.journals()], attempt=run.attempt)
        self._metrics = metrics
        self._checkpoints = checkpoints
        self._removal = removal
        self._responses = responses
        self._alerts = alerts
        self._clock = clock
        self._folder = run.folder
        self.on_intrusion: Callable[[], None] = lambda: None
        """Called before the run is left to another writer."""

    def beat(self) -> None:
        """Do regular work in the background; what is slow happens outside the lock."""
        self.apply_updates()
        self._writer.keep_trying(self.check_sole_writer, trouble="altered journals cannot be written again")
        with self._guard.lock:
            if not self._guard.is_open():
                return
            self._metrics.leave_out_standstill()
            self._metrics.write_ready()
            self._writer.write_queued()
            digested = self.keep_digests(wait=False)
            self._responses.tell_served()
        self._removal.keep_previous(digested, is_replaced=False)
        self._writer.keep_trying(
            self._writer.sync, trouble="a power loss would lose the newest records, which cannot be synced"
        )
        self._responses.save_index(only_if_due=True)
        (summary, file), free_bytes = self._summarized(), self._alerts.free_bytes()
        with self._guard.lock:
            if not self._guard.is_open():
                return
            self._alerts.check(summary, free_bytes)
            summary.alerts_active = list(self._writer.session.alerts_active)
        self._writer.write_summary(summary, file)
        content = None
        with self._guard.lock:
            if self._writer.is_session_file_due:
                content = self._writer.session_content()
        self._writer.write_session(content)

    def apply_updates(self) -> None:
        """Let the session include all updates, a few at a time, so that the loop never waits for long."""
        while self._writer.num_unapplied:
            with self._guard.lock:
                self._writer.apply_updates(_UPDATES_AT_ONCE)
            give_way()

    def check_sole_writer(self) -> None:
        """Stop writing if something else writes the run as well."""
        if not self._guard.is_open():
            return
        intrusion = self._sole_writer.find_intrusion(self._clock.steady(), guard=self._guard.lock)
        if intrusion is not None:
            self._stop_writing(intrusion)
        elif self._sole_writer.altered:
            self._restore_journals()
        elif self._writer.are_snapshots_gone():
            log.warning("Snapshots in %s were removed; they are written again.", self._folder.progress)
            with self._guard:
                self.write_snapshots()

    def check_before_closing(self) -> None:
        """Look for another writer and for altered journals a last time; without its journals no run is complete."""
        try:
            self.check_sole_writer()
        except (StorageError, OSError) as error:
            names = ", ".join(path.name for path in self._sole_writer.altered)
            what = f"its journals ({names}) were altered and cannot be written again: {error}"
            self._stop_writing(Intrusion(what=what, other=None))

    def keep_digests(self, *, wait: bool) -> list[CheckpointMetadata]:
        """Record the digests that are ready; where that fails, a later call tries again."""
        digested: list[CheckpointMetadata] = []
        self._writer.keep_trying(
            lambda: digested.extend(self._checkpoints.keep_digests(wait=wait)),
            trouble="checkpoints are unverified, as their digests cannot be recorded",
        )
        return digested

    def check_alerts(self) -> None:
        """Check for alerts between heartbeats, or if there is no heartbeat."""
        self._alerts.check(self.summary(), self._alerts.free_bytes(), is_moving=True)

    def summary(self) -> ProgressSummary:
        """The fields of `progress.json`, as of now."""
        return self._summarized()[0]

    def finish_writing(self) -> None:
        """Make everything durable now, and write all snapshots; the caller holds the lock.

        Raises:
            StorageError, OSError: something could not be written.
        """
        self._responses.tell_served()
        self._writer.write_queued()
        self._writer.sync()
        self.write_snapshots()
        self._writer.raise_if_queued()

    def write_snapshots(self) -> None:
        """Replace all snapshots."""
        self._writer.write_summary(*self._summarized())
        self._writer.write_manifest()
        self._writer.write_session(self._writer.session_content())

    def _summarized(self) -> tuple[ProgressSummary, ProgressFile]:
        """All that `progress.json` says; what takes long happens outside the lock."""
        with self._guard.lock:
            self._responses.tell_served()
            session, file = self._writer.session_as_of_now(), self._writer.progress_file()
            hours, num_pending = self._metrics.hours_trained(), self._metrics.num_pending
        return self._writer.summary(session, wall_clock_hours=hours, num_pending=num_pending), file

    def _restore_journals(self) -> None:
        """Write journals again that a tool has edited or removed, loudly; training goes on.

        Raises:
            DiskFull, StorageUnwritable: it could not be done; the next heartbeat tries again.
        """
        with self._guard:
            restored = self._writer.restore_journals(self._sole_writer.altered)
            if self._folder.answers in self._sole_writer.altered:
                self._responses.forget_index()
            message = "; ".join(map(str, restored))
            log.error(
                "Something has altered the journals of %s while this process writes them: %s. Training goes on.",
                self._folder.root,
                message,
            )
            self._alerts.report_altered_journals(message)
            self._writer.sync()
            self.write_snapshots()

    def _stop_writing(self, intrusion: Intrusion) -> None:
        """Leave the run to another writer; every later call raises an error that names it."""
        with self._guard.removal_lock, self._guard.lock:
            if not self._guard.is_open():
                return
            self.on_intrusion()
            self._writer.abandon()
            self._guard.stop(intrusion)
            try:
                self._metrics.write_all()
                self._responses.tell_served()
                kept = self._writer.rescue()
                if kept:
                    self._guard.add_details(f"What is not in the run is in {', '.join(map(str, kept))}.")
            except Exception as error:
                self._guard.add_details(
                    f"{self._writer.num_queued} lines could not be written and are lost at its end: {error}"
                )
            self._alerts.close()
            self._checkpoints.close()
            self._writer.close()
        log.error("%s Nothing more is written by this one.", self._guard.error())

"""Raise the alerts of a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from crashproof.alerts.channels.base import AlertChannel
from crashproof.alerts.content import AlertContent
from crashproof.alerts.settings import AlertSettings
from crashproof.disk.files import REAL_DISK
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import BudgetExhausted
from crashproof.notices import Notices
from crashproof.records.events import AlertCleared, AlertRaised, Event, Stamp
from crashproof.records.progress import ProgressSummary
from crashproof.records.session import AttemptRecord, TrainingSession
from crashproof.records.states import AlertKind, HealthState
from crashproof.rules.alerts import (
    ALERT_KINDS,
    CONDITIONS,
    Observed,
    changes_of,
    end_of,
    is_good_news,
    least_free_bytes,
    untold_crashes,
)
from crashproof.rules.secrets.known import KnownSecrets
from crashproof.rules.secrets.texts import without_secrets
from crashproof.rules.spending import spending_of

if TYPE_CHECKING:
    from crashproof.alerts.process_client import AlertProcess

__all__ = ["AlertMonitor"]

log = logging.getLogger("crashproof")


class AlertedRun(Protocol):
    """What the monitor needs of its run."""

    folder: RunFolder
    """The run's files."""
    attempt: int
    """The number of this attempt."""

    @property
    def session(self) -> TrainingSession:
        """As of now."""
        ...

    def stamp(self) -> Stamp:
        """Time and attempt, for an event of this moment."""
        ...

    def keep(self, event: Event) -> None:
        """Journal an event."""
        ...

    def unwritten(self) -> str:
        """What of its records has not reached the disk for a while, and why; empty if all has."""
        ...


class AlertMonitor:
    """Records, logs and hands over alerts. Never raises; not thread-safe: its owner locks."""

    def __init__(self, run: AlertedRun, settings: AlertSettings) -> None:
        self._run = run
        self._settings = settings
        self._notices = Notices()
        self._fine_since: dict[str, float] = {}
        self._looked_at = run.stamp()["timestamp"]
        channels = settings.channels()
        self._secrets = KnownSecrets(settings.secrets())
        self._own_channels = [channel for channel in channels if channel.runs_in_training]
        self._process: AlertProcess | None = None
        if len(self._own_channels) < len(channels):
            with self._never_raising():
                self._process = self._start_process(channels)

    def report_earlier_crashes(self) -> None:
        """Report attempts whose crash nobody could report."""
        with self._never_raising():
            for attempt, message in untold_crashes(self._run.session):
                self._raise(AlertKind.CRASHED, message, attempt)

    def free_bytes(self) -> int | None:
        """Free space on the run's disk; needs no lock."""
        try:
            return REAL_DISK.free_bytes(self._run.folder.progress)
        except OSError:
            return None

    def check(self, summary: ProgressSummary, free_bytes: int | None, *, is_moving: bool = False) -> None:
        """Raise what has begun, and clear what is over.

        Args:
            summary: The fields of `progress.json`, as of now.
            free_bytes: Free space on the run's disk, where known.
            is_moving: Whether the training loop itself is calling, so that it cannot be stalled.
        """
        with self._never_raising():
            observed = self._observe(summary, free_bytes, is_moving=is_moving)
            changes = changes_of(self._run.session, observed, self._fine_since)
            self._fine_since, self._looked_at = changes.fine_since, observed.now
            for kind in changes.cleared:
                self._run.keep(AlertCleared(**self._run.stamp(), kind=kind))
                log.info("Alert %s cleared.", kind)
            for kind, message in changes.raised.items():
                self._raise(kind, message, self._own_attempt())
            if self._process is not None:
                self._process.restart_if_dead()

    def report_altered_journals(self, message: str) -> None:
        """Report that something else has edited or removed journals of the live run."""
        with self._never_raising():
            self._raise(AlertKind.JOURNAL_ALTERED, message, self._own_attempt())

    def report_end(self, error: BaseException | None) -> None:
        """Report how the attempt ended, once its end is recorded."""
        with self._never_raising():
            session, attempt = self._run.session, self._own_attempt()
            if isinstance(error, BudgetExhausted) and AlertKind.BUDGET_100 not in session.alerts_active:
                # The next request would have passed it, so nothing more is spent.
                self._raise(AlertKind.BUDGET_100, error.message.rstrip("."), attempt)
            end = None if attempt is None else end_of(session, attempt)
            if end is not None:
                self._raise(*end, attempt)

    def close(self) -> None:
        """Finish; the process sends what is left, and nobody waits for it."""
        with self._never_raising():
            if self._process is not None:
                self._process.finish()

    def leave_to_parent(self) -> None:
        """In a forked child, leave the process to the parent."""
        if self._process is not None:
            self._process.detach()
            self._process = None

    @contextmanager
    def _never_raising(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # An alert that cannot be raised must not stop the training, nor fill its log every second.
            if self._notices.is_new(type(error)):
                log.exception("An alert could not be raised; training goes on.")

    def _observe(self, summary: ProgressSummary, free_bytes: int | None, *, is_moving: bool) -> Observed:
        session, limit = self._run.session, self._settings.disk_low_bytes
        spending = spending_of(session)
        return Observed(
            now=self._run.stamp()["timestamp"],
            health=HealthState.RUNNING if is_moving else summary.health,
            health_reason=summary.health_reason,
            verdict=summary.loss_trend.verdict,
            evidence=summary.loss_trend.evidence,
            looked_at=self._looked_at,
            unwritten=self._run.unwritten(),
            free_bytes=free_bytes,
            least_free_bytes=least_free_bytes(session) if limit is None else limit,
            # What is reserved may turn out cheaper, and would make an alert come and go.
            spent=spending.committed - spending.reserved,
            budget=self._settings.budget_dollars,
        )

    def _raise(self, kind: AlertKind, message: str, about: AttemptRecord | None) -> None:
        message = self._secrets.hide(without_secrets(message))
        stamp = self._run.stamp()
        about_attempt = stamp["attempt"] if about is None else about.attempt
        session = self._run.session
        self._run.keep(
            AlertRaised(
                **stamp, kind=kind, message=message, about_attempt=about_attempt, step=session.steps_completed
            )
        )
        log.log(self._level(kind), "Alert %s: %s.", kind, message)
        if not self._settings.sends(kind):
            return
        run = str(self._run.folder.root)
        content = AlertContent.of(session, about, kind, message, run=run, now=stamp["timestamp"])
        if self._process is not None:
            self._process.hand_over(content)
        for channel in self._own_channels:
            channel.send(content)

    def _level(self, kind: str) -> int:
        if kind in CONDITIONS:
            return logging.WARNING
        # The log already holds how an attempt ended; only who wants alerts is warned once more.
        is_wanted = bool(self._own_channels) or self._process is not None
        return logging.WARNING if is_wanted and not is_good_news(kind) else logging.INFO

    def _own_attempt(self) -> AttemptRecord | None:
        number = self._run.attempt
        return next((each for each in self._run.session.attempts if each.attempt == number), None)

    def _start_process(self, channels: list[AlertChannel]) -> AlertProcess:
        # Like the channels, it brings along what a run without alerts does not wait for.
        from crashproof.alerts.process_client import AlertProcess, WatchedRun

        watched = WatchedRun(
            pid=os.getpid(),
            progress=str(self._run.folder.progress),
            session_id=self._run.session.session_id,
            attempt=self._run.attempt,
            channels={channel.name: channel.setting for channel in channels if not channel.runs_in_training},
            kinds=[kind for kind in ALERT_KINDS if self._settings.sends(kind)],
        )
        return AlertProcess(watched)

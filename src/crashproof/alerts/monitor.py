"""Raise the alerts of a run."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from crashproof.alerts.process_client import AlertHelper, Channels, Watched
from crashproof.alerts.settings import AlertSettings
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import BudgetExhausted
from crashproof.records.events import AlertCleared, AlertRaised, Event, Stamp
from crashproof.records.progress import ProgressSummary
from crashproof.records.session import AttemptRecord, TrainingSession
from crashproof.records.states import AlertKind, HealthState
from crashproof.rules.alerts import (
    ALERT_KINDS,
    CONDITIONS,
    Observed,
    alert_content,
    changes_of,
    end_of,
    is_good_news,
    least_free_bytes,
    untold_crashes,
)
from crashproof.rules.spending import spending_of

__all__ = ["AlertMonitor"]

log = logging.getLogger("crashproof")


class AlertedRun(Protocol):
    """What the monitor needs of the run that it belongs to."""

    @property
    def folder(self) -> RunFolder:
        """Where everything of the run lies."""
        ...

    @property
    def attempt(self) -> int:
        """The number of this process life."""
        ...

    @property
    def session(self) -> TrainingSession:
        """As of now."""
        ...

    def stamp(self) -> Stamp:
        """When and by whom, for an event of this moment."""
        ...

    def keep(self, event: Event) -> None:
        """Journal an event."""
        ...


class AlertMonitor:
    """Records, logs and hands over what somebody should know. Never raises; not thread-safe: its owner locks."""

    def __init__(self, run: AlertedRun, settings: AlertSettings) -> None:
        self._run = run
        self._settings = settings
        self._fine_since: dict[str, float] = {}
        self._looked_at = run.stamp()["timestamp"]
        self._helper: AlertHelper | None = None
        if settings.has_channel:
            with _never_raising():
                self._helper = AlertHelper(self._watched())

    def tell_earlier_crashes(self) -> None:
        """Tell of attempts that died before anybody could."""
        with _never_raising():
            for attempt, message in untold_crashes(self._run.session):
                self._raise(AlertKind.CRASHED, message, attempt)

    def free_bytes(self) -> int | None:
        """What is free on the run's disk; may be asked without the owner's lock."""
        try:
            return shutil.disk_usage(self._run.folder.progress).free
        except OSError:
            return None

    def look(self, summary: ProgressSummary, free_bytes: int | None, *, is_moving: bool = False) -> None:
        """Raise what has begun, and clear what is over.

        Args:
            summary: The fields of `progress.json`, as of now.
            free_bytes: What is free on the run's disk, where that is known.
            is_moving: Whether the loop is just calling, so that nothing stalls.
        """
        with _never_raising():
            session = self._run.session
            stamp = self._run.stamp()
            spending = spending_of(session)
            limit = self._settings.disk_low_bytes
            observed = Observed(
                now=stamp["timestamp"],
                health=HealthState.RUNNING if is_moving else summary.health,
                health_reason=summary.health_reason,
                verdict=summary.loss_trend.verdict,
                looked_at=self._looked_at,
                free_bytes=free_bytes,
                least_free_bytes=least_free_bytes(session) if limit is None else limit,
                # What is reserved may turn out cheaper, and would make an alert come and go.
                spent=spending.committed - spending.reserved,
                budget=self._settings.budget_dollars,
            )
            changes = changes_of(session, observed, self._fine_since)
            self._fine_since, self._looked_at = changes.fine_since, stamp["timestamp"]
            for kind in changes.cleared:
                self._run.keep(AlertCleared(**self._run.stamp(), kind=kind))
                log.info("No longer %s.", kind)
            for kind, message in changes.raised.items():
                self._raise(kind, message, self._own_attempt())
            if self._helper is not None:
                self._helper.keep_alive()

    def tell_end(self, error: BaseException | None) -> None:
        """Tell how the attempt has ended, once its end is recorded."""
        with _never_raising():
            session, attempt = self._run.session, self._own_attempt()
            if isinstance(error, BudgetExhausted) and AlertKind.BUDGET_100 not in session.alerts_active:
                # The next request would have passed it, so nothing more is spent.
                self._raise(AlertKind.BUDGET_100, error.message.rstrip("."), attempt)
            end = None if attempt is None else end_of(session, attempt)
            if end is not None:
                self._raise(*end, attempt)

    def close(self) -> None:
        """Say that all is told; what is under way is sent by the helper, and nobody waits for it."""
        with _never_raising():
            if self._helper is not None:
                self._helper.say_good_bye()

    def leave_to_parent(self) -> None:
        """In a forked child: the helper is the parent's."""
        if self._helper is not None:
            self._helper.leave()
            self._helper = None

    def _raise(self, kind: AlertKind, message: str, about: AttemptRecord | None) -> None:
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
        if self._settings.bell and sys.stderr is not None and sys.stderr.isatty():
            sys.stderr.write("\a")
            sys.stderr.flush()
        if self._helper is not None:
            run = str(self._run.folder.root)
            content = alert_content(session, about, kind, message, run=run, now=stamp["timestamp"])
            self._helper.hand_over(content)

    def _level(self, kind: str) -> int:
        if kind in CONDITIONS:
            return logging.WARNING
        # How an attempt ends is in the log already; who asked to be alerted sees here that it is told.
        is_asked_for = self._settings.has_channel or self._settings.bell
        return logging.WARNING if is_asked_for and not is_good_news(kind) else logging.INFO

    def _own_attempt(self) -> AttemptRecord | None:
        number = self._run.attempt
        return next((each for each in self._run.session.attempts if each.attempt == number), None)

    def _watched(self) -> Watched:
        run, settings = self._run, self._settings
        command = settings.command
        return Watched(
            pid=os.getpid(),
            progress=str(run.folder.progress),
            session_id=run.session.session_id,
            attempt=run.attempt,
            channels=Channels(
                webhook=settings.webhook,
                slack_webhook=settings.slack_webhook,
                command=command if command is None or isinstance(command, str) else list(command),
                desktop=settings.desktop,
            ),
            kinds=[kind for kind in ALERT_KINDS if settings.sends(kind)],
        )


@contextmanager
def _never_raising() -> Iterator[None]:
    try:
        yield
    except Exception:
        # Whoever trains is not stopped because nobody could be told.
        log.exception("An alert could not be raised; training goes on.")

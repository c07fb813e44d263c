"""Send a supervisor's alerts."""

from __future__ import annotations

import os
import socket

from crashproof.alerts.content import AlertContent
from crashproof.alerts.process_client import AlertProcess, WatchedRun
from crashproof.alerts.settings import AlertSettings
from crashproof.disk.run_folder import RunFolder
from crashproof.records.events import ProcessEnded
from crashproof.records.session import TrainingSession
from crashproof.records.states import AlertKind
from crashproof.records.supervision import Action
from crashproof.rules.alerts import ALERT_KINDS
from crashproof.supervisor.recording import alert_about

__all__ = ["SupervisorAlerts"]


class SupervisorAlerts:
    """Hands the alert about an end to the process that sends them; that process is started with the first one."""

    def __init__(self, settings: AlertSettings, *, command: str) -> None:
        self._settings = settings
        self._command = command
        self._process: AlertProcess | None = None

    def tell(self, end: ProcessEnded, folder: RunFolder | None, session: TrainingSession | None) -> None:
        """Send what there is to tell of an end."""
        by_itself = AlertKind.COMPLETE if end.action == Action.FINISH else AlertKind.PREEMPTED
        kind, message = alert_about(end) or (by_itself, end.details)
        if not self._settings.channels() or not self._settings.sends(kind):
            return
        for channel in self._settings.channels():
            if channel.runs_in_training:
                channel.send(self._content(end, kind, message, folder, session))
        self._started(folder).hand_over(self._content(end, kind, message, folder, session))

    def close(self) -> None:
        """Finish; what was handed over is still sent."""
        if self._process is not None:
            self._process.finish()

    def _started(self, folder: RunFolder | None) -> AlertProcess:
        if self._process is None:
            channels = {each.name: each.setting for each in self._settings.channels() if not each.runs_in_training}
            # Without a session of that name it reports no crash of its own accord.
            progress = "" if folder is None else str(folder.progress)
            watched = WatchedRun(
                pid=os.getpid(),
                progress=progress,
                session_id="",
                attempt=0,
                channels=channels,
                kinds=[kind for kind in ALERT_KINDS if self._settings.sends(kind)],
            )
            self._process = AlertProcess(watched)
        return self._process

    def _content(
        self,
        end: ProcessEnded,
        kind: AlertKind,
        message: str,
        folder: RunFolder | None,
        session: TrainingSession | None,
    ) -> AlertContent:
        done, total = (end.step, 1) if session is None else (session.steps_done, session.total_steps_target)
        return AlertContent(
            kind=kind,
            message=message,
            run=self._command if folder is None else str(folder.root),
            session_id="" if session is None else session.session_id,
            attempt=end.attempt or None,
            step=end.step,
            host=socket.gethostname(),
            time=end.timestamp,
            progress_pct=min(100.0, 100.0 * done / total),
        )

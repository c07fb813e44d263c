"""The process that sends alerts.

It outlives the training by moments: long enough to send what it was given, and to report a training that exited
without recording a shutdown.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
import threading
import time
from pathlib import Path

import msgspec

from crashproof.alerts.channels.registry import CHANNELS
from crashproof.alerts.content import AlertContent
from crashproof.alerts.delivery import Deliveries
from crashproof.alerts.process_client import STOP_SIGNALS, Finished, Send, WatchedRun
from crashproof.disk.lock import WriterLock
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import CrashproofError, RunInUse
from crashproof.reading.between_attempts import append_between_attempts
from crashproof.reading.run_state import read_run
from crashproof.records.events import AlertRaised, Event
from crashproof.records.session import AttemptRecord, TrainingSession
from crashproof.records.states import AlertKind
from crashproof.rules.alerts import end_of, untold_crashes
from crashproof.threads import try_to_start

__all__ = ["main"]

_POLL_SECONDS = 0.5
_RESTART_SECONDS = 3.0
"""How long a dead training has to be restarted, so that its next attempt reports the crash."""
_LOCK_ATTEMPTS = 30
_SECONDS_BETWEEN_ATTEMPTS = 1.0
_STANDARD_ERROR_SECONDS = 2.0
"""How long standard error stays open after the training ended: its readers wait until it is closed."""

_decoder: msgspec.json.Decoder[WatchedRun | Send | Finished] = msgspec.json.Decoder(WatchedRun | Send | Finished)


def main() -> None:
    """Serve the process that started this one, until it has ended and everything is sent."""
    # A request to all processes of a job to stop is for the training; this process stops after it. A handler and not
    # SIG_IGN, which a command would inherit.
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    inbox = _Inbox(sys.stdin.fileno())
    watched = _read_first_record(inbox)
    if watched is None:
        return
    channels = [CHANNELS[name].from_setting(setting) for name, setting in watched.channels.items()]
    deliveries = Deliveries([channel for channel in channels if channel is not None], report=_report)
    is_finished = _serve(inbox, watched, deliveries)
    try_to_start(threading.Thread(target=_release_standard_error, daemon=True))
    if not is_finished:
        try:
            _report_crash(watched, deliveries)
        except (CrashproofError, OSError) as error:
            _report(f"the crash of the training in {watched.progress} could not be reported: {error}")
    deliveries.wait()


class _Inbox:
    """Lines as they arrive."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._rest = b""
        self._returned: list[bytes] = []
        self.is_closed = False

    def put_back(self, lines: list[bytes]) -> None:
        """Return lines, to be read next."""
        self._returned = lines

    def lines(self, seconds: float) -> list[bytes]:
        """Read the complete lines that are there, or arrive within some seconds."""
        if self._returned:
            lines, self._returned = self._returned, []
            return lines
        if self.is_closed:
            time.sleep(seconds)
            return []
        if not select.select([self._file], [], [], seconds)[0]:
            return []
        try:
            content = os.read(self._file, 1 << 16)
        except OSError:
            content = b""
        self.is_closed = not content
        *lines, self._rest = (self._rest + content).split(b"\n")
        return lines


def _read_first_record(inbox: _Inbox) -> WatchedRun | None:
    parent = os.getppid()
    waiting: list[bytes] = []
    while not waiting and not inbox.is_closed and os.getppid() == parent:
        waiting = inbox.lines(_POLL_SECONDS)
    if not waiting:
        return None
    first = _decoder.decode(waiting[0])
    inbox.put_back(waiting[1:])
    return first if isinstance(first, WatchedRun) else None


def _serve(inbox: _Inbox, watched: WatchedRun, deliveries: Deliveries) -> bool:
    """Send what is handed over until the training has ended; return whether it reported its end."""
    while True:
        # The end of the input alone does not tell: a forked child of the training may hold the other end open.
        is_gone = inbox.is_closed or os.getppid() != watched.pid
        lines = inbox.lines(0.0 if is_gone else _POLL_SECONDS)
        for line in lines:
            record = _decoder.decode(line)
            if isinstance(record, Send):
                deliveries.start(record.content)
            elif isinstance(record, Finished):
                return True
        if is_gone and not lines:
            return False


def _report_crash(watched: WatchedRun, deliveries: Deliveries) -> None:
    """Record and send that the training died, unless another attempt has started meanwhile."""
    time.sleep(_RESTART_SECONDS)
    folder = RunFolder(Path(watched.progress))
    lock = _lock(folder, watched)
    if lock is None:
        return
    try:
        contents = _record_ends(folder, watched)
    finally:
        lock.release()
    for content in contents:
        if content.kind in watched.kinds:
            deliveries.start(content)


def _lock(folder: RunFolder, watched: WatchedRun) -> WriterLock | None:
    """Acquire the run's lock; None where another attempt has started, or the lock stays taken."""
    attempts = _LOCK_ATTEMPTS
    while attempts and not _is_replaced(read_run(folder).session, watched):
        try:
            return WriterLock(folder.lock)
        except RunInUse:
            # Another process opens or repairs the run, or the training lives and has only closed its files.
            attempts -= os.getppid() != watched.pid
            time.sleep(_SECONDS_BETWEEN_ATTEMPTS)
    return None


def _record_ends(folder: RunFolder, watched: WatchedRun) -> list[AlertContent]:
    """Record the unreported ends of attempts, durably; return what is to be sent."""
    state = read_run(folder)
    if _is_replaced(state.session, watched):
        return []
    now, contents = time.time(), list[AlertContent]()

    def alerts_of(session: TrainingSession) -> list[Event]:
        ends = _unreported_ends(session, watched.attempt)
        run = str(folder.root)
        contents.extend(
            AlertContent.of(session, about, kind, message, run=run, now=now) for about, kind, message in ends
        )
        return [
            AlertRaised(
                timestamp=now,
                attempt=watched.attempt,
                kind=kind,
                message=message,
                about_attempt=about.attempt,
                step=session.steps_completed,
            )
            for about, kind, message in ends
        ]

    try:
        append_between_attempts(folder, alerts_of, attempt=watched.attempt, now=now)
    except (CrashproofError, OSError) as error:
        # A full disk may be what it died of. The next start reports the crash again, which is better than never.
        _report(f"an alert could not be recorded: {error}")
    return contents


def _unreported_ends(session: TrainingSession, dead: int) -> list[tuple[AttemptRecord, AlertKind, str]]:
    ends = [(attempt, AlertKind.CRASHED, message) for attempt, message in untold_crashes(session)]
    own = [attempt for attempt in session.attempts if attempt.attempt == dead]
    return ends + [(attempt, *end) for attempt in own if (end := end_of(session, attempt)) is not None]


def _is_replaced(session: TrainingSession | None, watched: WatchedRun) -> bool:
    """Whether another attempt has started, or the session is no longer there."""
    if session is None or session.session_id != watched.session_id:
        return True
    return max((each.attempt for each in session.attempts), default=0) > watched.attempt


def _release_standard_error() -> None:
    time.sleep(_STANDARD_ERROR_SECONDS)
    try:
        mode = os.fstat(sys.stderr.fileno()).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            # Opened to read: what is still written there fails, and is not missed.
            with open(os.devnull) as nothing:
                os.dup2(nothing.fileno(), sys.stderr.fileno())
    except (OSError, ValueError):
        return


def _report(text: str) -> None:
    try:
        sys.stderr.write(f"crashproof: {text}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        return

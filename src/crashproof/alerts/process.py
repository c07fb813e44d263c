"""The process that sends alerts.

It outlives the training by moments: long enough to send what it was given, and to tell of a training that died
without a word.
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

from crashproof.alerts.delivery import Deliveries
from crashproof.alerts.process_client import HELD_BACK, Deliver, GoodBye, Watched
from crashproof.disk.files import storage_errors
from crashproof.disk.journal import append_durably, repair_journal
from crashproof.disk.lock import WriterLock
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import CrashproofError, RunInUse
from crashproof.reading.damage import damage_event
from crashproof.reading.run_state import read_run
from crashproof.records.codec import encode
from crashproof.records.events import AlertRaised, Event
from crashproof.records.session import AttemptRecord, TrainingSession
from crashproof.rules.alerts import alert_content, end_of, untold_crashes

__all__ = ["main"]

_POLL_SECONDS = 0.5
_RESTART_SECONDS = 3.0
"""So long a dead training is given to be started again: then its next attempt tells of it."""
_TRIES = 30
_SECONDS_BETWEEN_TRIES = 1.0
_LAST_WORDS_SECONDS = 2.0
"""So long after the training's end its standard error is kept open: who reads that waits for its end."""

_decoder: msgspec.json.Decoder[Watched | Deliver | GoodBye] = msgspec.json.Decoder(Watched | Deliver | GoodBye)


def main() -> None:
    """Serve the process that has started this one, until both have said all."""
    # Whoever asks all processes of a job to stop is heard by the training; this one stops after it. A handler and not
    # SIG_IGN, which a command would inherit.
    for number in HELD_BACK:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
    inbox = _Inbox(sys.stdin.fileno())
    watched = _first_record(inbox)
    if watched is None:
        return
    deliveries = Deliveries(watched.channels, tell=_tell)
    said_good_bye = _listen(inbox, watched, deliveries)
    threading.Thread(target=_let_go_of_standard_error, daemon=True).start()
    if not said_good_bye:
        try:
            _tell_of_death(watched, deliveries)
        except (CrashproofError, OSError) as error:
            _tell(f"the death of the training in {watched.progress} could not be told: {error}")
    deliveries.wait()


class _Inbox:
    """Lines as they come."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._rest = b""
        self._returned: list[bytes] = []
        self.is_closed = False

    def put_back(self, lines: list[bytes]) -> None:
        """Lines to be read next."""
        self._returned = lines

    def lines(self, seconds: float) -> list[bytes]:
        """The whole lines that are there, or come within some seconds."""
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


def _first_record(inbox: _Inbox) -> Watched | None:
    parent = os.getppid()
    waiting: list[bytes] = []
    while not waiting and not inbox.is_closed and os.getppid() == parent:
        waiting = inbox.lines(_POLL_SECONDS)
    if not waiting:
        return None
    first = _decoder.decode(waiting[0])
    inbox.put_back(waiting[1:])
    return first if isinstance(first, Watched) else None


def _listen(inbox: _Inbox, watched: Watched, deliveries: Deliveries) -> bool:
    """Send what is handed over; says whether the training has said good-bye before it was gone."""
    while True:
        # Not by the end of the input alone: a forked child of the training may hold the other end open.
        is_gone = inbox.is_closed or os.getppid() != watched.pid
        lines = inbox.lines(0.0 if is_gone else _POLL_SECONDS)
        for line in lines:
            record = _decoder.decode(line)
            if isinstance(record, Deliver):
                deliveries.begin(record.content)
            elif isinstance(record, GoodBye):
                return True
        if is_gone and not lines:
            return False


def _tell_of_death(watched: Watched, deliveries: Deliveries) -> None:
    """Record and send that the training is gone, unless it was taken up meanwhile."""
    time.sleep(_RESTART_SECONDS)
    folder = RunFolder(Path(watched.progress))
    tries = _TRIES
    while tries:
        session = read_run(folder).session
        if session is None or _is_taken_up(session, watched):
            return
        try:
            lock = WriterLock(folder.lock)
        except RunInUse:
            # Somebody takes it up or mends it, or the training lives and has only closed its files.
            tries -= os.getppid() != watched.pid
            time.sleep(_SECONDS_BETWEEN_TRIES)
            continue
        try:
            told = _recorded(folder, watched)
        finally:
            lock.release()
        for content in told:
            if content["kind"] in watched.kinds:
                deliveries.begin(content)
        return


def _recorded(folder: RunFolder, watched: Watched) -> list[dict[str, object]]:
    """Put the untold ends into the events, durably; returns what is to be sent."""
    state = read_run(folder)
    session = state.session
    if session is None or _is_taken_up(session, watched):
        return []
    now = time.time()
    events: list[Event] = []
    if folder.events.name in state.damages:
        # A line that the kill cut off; a whole one behind it would be part of it.
        with storage_errors(folder.events):
            pieces = repair_journal(
                folder.events,
                quarantine=folder.quarantine / folder.events.name,
                start=state.damages[folder.events.name][0].offset,
            )
        events += [
            damage_event(folder, folder.events.name, piece, timestamp=now, attempt=watched.attempt)
            for piece in pieces
        ]
        state = read_run(folder)
        assert state.session is not None
        session = state.session
    ends = _untold(session, watched.attempt)
    events += [
        AlertRaised(
            timestamp=now,
            attempt=watched.attempt,
            kind=kind,
            message=message,
            about_attempt=attempt.attempt,
            step=session.steps_completed,
        )
        for attempt, kind, message in ends
    ]
    try:
        append_durably(folder.events, map(encode, events), mark=state.marks[folder.events.name])
    except (CrashproofError, OSError) as error:
        # A full disk may be what it died of; the next start tells of it once more, which is better than never.
        _tell(f"an alert could not be recorded: {error}")
    run = str(folder.root)
    return [alert_content(session, attempt, kind, message, run=run, now=now) for attempt, kind, message in ends]


def _untold(session: TrainingSession, gone: int) -> list[tuple[AttemptRecord, str, str]]:
    ends = [(attempt, "crashed", message) for attempt, message in untold_crashes(session)]
    own = [attempt for attempt in session.attempts if attempt.attempt == gone]
    return ends + [(attempt, *end) for attempt in own if (end := end_of(session, attempt)) is not None]


def _is_taken_up(session: TrainingSession, watched: Watched) -> bool:
    newest = max((each.attempt for each in session.attempts), default=0)
    return session.session_id != watched.session_id or newest > watched.attempt


def _let_go_of_standard_error() -> None:
    time.sleep(_LAST_WORDS_SECONDS)
    try:
        mode = os.fstat(sys.stderr.fileno()).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            # Opened to read: what is still written there fails, and is not missed.
            with open(os.devnull) as nothing:
                os.dup2(nothing.fileno(), sys.stderr.fileno())
    except (OSError, ValueError):
        return


def _tell(text: str) -> None:
    try:
        sys.stderr.write(f"crashproof: {text}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        return


if __name__ == "__main__":
    main()

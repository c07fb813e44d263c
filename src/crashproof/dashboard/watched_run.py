"""What the server knows of one run.

Each request reads what has been written since the last one.
"""

from __future__ import annotations

import logging
import threading
import time
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from crashproof.dashboard.responses import (
    Curve,
    CurveTail,
    RunDetail,
    RunRow,
    StaleTail,
    UnreadableRun,
    checkpoint_rows,
    columns_of,
    config_texts,
    event_fields,
)
from crashproof.disk.lock import holder_of
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import CrashproofError
from crashproof.reading.curves import CurveFollower
from crashproof.reading.run_reader import RunReader
from crashproof.reading.session_follower import SessionFollower
from crashproof.records.progress import ProgressSummary
from crashproof.records.session import TrainingSession
from crashproof.records.states import RunStatus
from crashproof.rules.curves import joined, point_of
from crashproof.rules.summary import progress_summary
from crashproof.threads import try_to_start

__all__ = ["WatchedRun"]

log = logging.getLogger("crashproof")

_FIRST_READING_SECONDS = 0.4
_SLICE_SECONDS = 0.1
_MOST_NEW_UPDATES = 20_000
"""A page that is further behind loads its curve again."""
_MOST_NEW_POINTS = 500
_MOST_EVENTS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class _Events:
    num_bytes: int
    newest: list[dict[str, object]]


class WatchedRun:
    """One run. Thread-safe."""

    def __init__(self, name: str, folder: RunFolder) -> None:
        self.name = name
        self.folder = folder
        self._lock = threading.Lock()
        self._session = SessionFollower(folder)
        self._curves = CurveFollower(folder)
        self._curve_lock = threading.Lock()
        self._events = _Events(num_bytes=-1, newest=[])
        self._row: tuple[tuple[int, ...], RunRow] | None = None
        """The row of a run that nobody writes, and the lengths of its journals when it was made."""
        self._is_reading = False

    def summary(self, *, now: float) -> ProgressSummary:
        """The run's progress as of `now`, in seconds since 1970."""
        with self._lock:
            return self._summary_of(self._session.session(), now)

    def row(self, *, now: float) -> RunRow | UnreadableRun:
        """The run's row in the list of all runs."""
        lengths = tuple(_size(each) for each in self._journals())
        if self._row is not None and self._row[0] == lengths and holder_of(self.folder.lock) is None:
            return self._row[1]
        try:
            summary = self.summary(now=now)
        except (CrashproofError, OSError) as error:
            return UnreadableRun(name=self.name, health_reason=str(error))
        except Exception as error:
            # Whatever a run's files hold, the others have their rows.
            log.exception("The run in %s cannot be read.", self.folder.root)
            return UnreadableRun(name=self.name, health_reason=f"{type(error).__name__}: {error}")
        row = RunRow.of(self.name, summary)
        self._row = None if summary.status == RunStatus.RUNNING else (lengths, row)
        return row

    def detail(self, *, now: float) -> RunDetail:
        """Everything about the run except its curves."""
        with self._lock:
            session = self._session.session()
            return RunDetail(
                name=self.name,
                now=now,
                folder=str(self.folder.root),
                summary=self._summary_of(session, now),
                # The next reading changes the session's own.
                attempts=[copy(each) for each in session.attempts],
                checkpoints=checkpoint_rows(session),
                evaluations=list(session.evaluations),
                config=config_texts(session.config),
                config_hash=session.config_hash,
                events=self._newest_events(),
            )

    def curve(self, *, most_points: int, first_step: int | None = None, last_step: int | None = None) -> Curve:
        """The history of a range of steps; while a long journal is still being read, the part read so far."""
        with self._curve_lock:
            is_complete = self._curves.refresh(most_seconds=_FIRST_READING_SECONDS)
            curve = self._curves.curve(most_points=most_points, first_step=first_step, last_step=last_step)
            recomputed = list(self._curves.recomputed)
        if not is_complete:
            self._read_in_background()
        return Curve(
            **columns_of(curve.points),
            num_updates=curve.num_updates,
            is_decimated=curve.is_decimated,
            end=curve.end,
            num_bytes=curve.num_bytes,
            is_complete=is_complete,
            recomputed=recomputed,
        )

    def tail(self, *, after: int) -> CurveTail | StaleTail:
        """The updates after an offset of the journal."""
        updates, end = [], after
        if not 0 <= after <= _size(self.folder.metrics):
            return StaleTail()
        for line_end, update in self._curves.lines_after(after):
            updates.append(update)
            end = line_end
            if len(updates) > _MOST_NEW_UPDATES:
                return StaleTail()
        if any(later.step <= earlier.step for earlier, later in pairwise(updates)):
            return StaleTail()
        points = [point_of([update]) for update in updates]
        size = max(1, -(-len(points) // _MOST_NEW_POINTS))
        points = [joined(points[start : start + size]) for start in range(0, len(points), size)]
        return CurveTail(**columns_of(points), end=end, num_updates=len(updates))

    def config(self) -> dict[str, Any]:
        """The config that the run was started with, without secrets."""
        with self._lock:
            return self._session.session().config

    def _journals(self) -> tuple[Path, ...]:
        return self.folder.events, self.folder.metrics, self.folder.requests, self.folder.answers

    def _summary_of(self, session: TrainingSession, now: float) -> ProgressSummary:
        is_alive = holder_of(self.folder.lock) is not None
        return progress_summary(session, now=now, wall_clock_hours=session.wall_clock_hours, is_alive=is_alive)

    def _newest_events(self) -> list[dict[str, object]]:
        num_bytes = _size(self.folder.events)
        if num_bytes != self._events.num_bytes:
            events = [event_fields(each) for each in RunReader(self.folder).events()]
            self._events = _Events(num_bytes=num_bytes, newest=events[-_MOST_EVENTS:])
        return self._events.newest

    def _read_in_background(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            if not try_to_start(threading.Thread(target=self._read_all, name="crashproof-reading", daemon=True)):
                # The next look reads on.
                self._is_reading = False

    def _read_all(self) -> None:
        try:
            while True:
                with self._curve_lock:
                    if self._curves.refresh(most_seconds=_SLICE_SECONDS):
                        return
                # Let a waiting request take the lock.
                time.sleep(0.001)
        except (CrashproofError, OSError) as error:
            log.warning("Stopped reading %s: %s", self.folder.metrics, error)
        finally:
            self._is_reading = False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0

"""What the server knows of one run.

Each request reads what has been written since the last one. Whatever goes wrong is an error of this run alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
    shown_text,
)
from crashproof.dashboard.server_log import describe_error
from crashproof.disk.lock import holder_of
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import CrashproofError
from crashproof.reading.curves import CurveFollower
from crashproof.reading.discovery import path_outside
from crashproof.reading.glance import glance_at_snapshot
from crashproof.reading.run_reader import RunReader
from crashproof.reading.session_follower import SessionFollower
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.progress import ProgressSummary
from crashproof.records.session import TrainingSession
from crashproof.records.states import RunStatus
from crashproof.rules.curves import joined, point_of
from crashproof.rules.history import merged_parts, standing_evaluations
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
_SEE_LOG = "The server's log says where."
_FOLLOW_LINKS = "It was not read; crashproof serve --follow-links follows links."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Events:
    num_bytes: int
    newest: list[dict[str, object]]


class CannotRead(CrashproofError):
    """A run that cannot be read, or must not be."""


class WatchedRun:
    """One run. Thread-safe.

    Every method raises `CrashproofError` or `OSError` for a run that cannot be read, whatever the reason is.
    """

    def __init__(self, name: str, folder: RunFolder, *, boundary: Path | None = None) -> None:
        """Watch a run; files that links place outside `boundary` are not read."""
        self.name = name
        self.folder = folder
        self._boundary = boundary
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
        with self._reading(), self._lock:
            return self._summary_of(self._session.session(), now)

    def row(self, *, now: float) -> RunRow | UnreadableRun:
        """The run's row in the list of all runs."""
        try:
            with self._reading():
                return self._read_row(now)
        except (CrashproofError, OSError) as error:
            return UnreadableRun(name=self.name, health_reason=shown_text(str(error)))

    def detail(self, *, now: float) -> RunDetail:
        """Everything about the run except its curves."""
        with self._reading(), self._lock:
            session = self._session.session()
            return RunDetail(
                name=self.name,
                now=now,
                folder=shown_text(str(self.folder.root)),
                summary=self._summary_of(session, now),
                # The next reading changes the session's own.
                attempts=[copy(each) for each in session.attempts],
                checkpoints=checkpoint_rows(session),
                evaluations=standing_evaluations(session.evaluations, session.timelines),
                config=config_texts(session.config),
                config_hash=session.config_hash,
                events=self._newest_events(),
            )

    def curve(self, *, most_points: int, first_step: int | None = None, last_step: int | None = None) -> Curve:
        """The history of a range of steps; while a long journal is still being read, the part read so far."""
        with self._reading(), self._curve_lock:
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
        with self._reading():
            return self._read_tail(after)

    def config(self) -> dict[str, Any]:
        """The config that the run was started with, without secrets."""
        with self._reading(), self._lock:
            return self._session.session().config

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Read nothing outside the served folder, and turn whatever goes wrong into an error of this run."""
        try:
            self._require_inside()
            yield
            # A link that was made meanwhile: what was read is not answered.
            self._require_inside()
        except (CrashproofError, OSError):
            raise
        except Exception as error:
            log.error("The run %s cannot be read: %s", self.name, describe_error(error))  # noqa: TRY400 - one line
            raise CannotRead(f"cannot be read: {type(error).__name__}", hint=_SEE_LOG) from error

    def _require_inside(self) -> None:
        outside = None if self._boundary is None else path_outside(self.folder, self._boundary)
        if outside is not None:
            raise CannotRead(f"{outside} is a link that leads out of {self._boundary}.", hint=_FOLLOW_LINKS)

    def _read_row(self, now: float) -> RunRow:
        lengths = tuple(_size(each) for each in self._journals())
        if self._row is not None and self._row[0] == lengths and holder_of(self.folder.lock) is None:
            return self._row[1]
        found = glance_at_snapshot(self.folder, now=now)
        if found is None:
            with self._lock:
                summary = self._summary_of(self._session.session(), now)
        else:
            summary = found.summary
        row = RunRow.of(self.name, summary)
        self._row = None if summary.status == RunStatus.RUNNING else (lengths, row)
        return row

    def _read_tail(self, after: int) -> CurveTail | StaleTail:
        lines: list[tuple[int, MetricsSnapshot]] = []
        if not 0 <= after <= _size(self.folder.metrics):
            return StaleTail()
        for line_end, update in merged_parts(self._curves.lines_after(after)):
            lines.append((line_end, update))
            if len(lines) > _MOST_NEW_UPDATES:
                return StaleTail()
        if lines and self._may_be_in_parts():
            # Another part of the newest update may follow, and the page cannot add to what it has.
            lines.pop()
        end = lines[-1][0] if lines else after
        updates = [update for _, update in lines]
        if any(later.step <= earlier.step for earlier, later in pairwise(updates)):
            return StaleTail()
        points = [point_of([update]) for update in updates]
        size = max(1, -(-len(points) // _MOST_NEW_POINTS))
        points = [joined(points[start : start + size]) for start in range(0, len(points), size)]
        return CurveTail(**columns_of(points), end=end, num_updates=len(updates))

    def _may_be_in_parts(self) -> bool:
        """Whether the newest update may get another part: the run is live, and has reported steps in parts."""
        with self._lock:
            has_parts = self._session.session().parts_merged > 0
        return has_parts and holder_of(self.folder.lock) is not None

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
                with self._reading(), self._curve_lock:
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

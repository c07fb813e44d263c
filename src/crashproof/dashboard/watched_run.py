"""What the page shows of one run.

Each look reads what has come since the last one. Answers are plain JSON values; NaN and infinities become null.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from crashproof.disk.lock import holder_of
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import CrashproofError
from crashproof.formatting import as_text
from crashproof.reading.curves import CurveFollower
from crashproof.reading.run_reader import RunReader
from crashproof.reading.session_follower import SessionFollower
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.curves import CurvePoint
from crashproof.records.events import Event
from crashproof.records.progress import ProgressSummary
from crashproof.records.session import TrainingSession
from crashproof.rules.curves import joined, point_of
from crashproof.rules.summary import progress_summary
from crashproof.threads import try_to_start

__all__ = ["WatchedRun", "json_bytes"]

log = logging.getLogger("crashproof")

_FIRST_READING_SECONDS = 0.4
_SLICE_SECONDS = 0.1
_MOST_NEW_UPDATES = 20_000
"""A page that is so far behind draws its picture anew."""
_MOST_NEW_POINTS = 500
_MOST_EVENTS = 200
_MOST_CHECKPOINTS = 500
_MOST_CONFIG_CHARACTERS = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Events:
    num_bytes: int
    newest: list[dict[str, Any]]


class WatchedRun:
    """One run; may be asked from any thread."""

    def __init__(self, name: str, folder: RunFolder) -> None:
        self.name = name
        self.folder = folder
        self._lock = threading.Lock()
        self._session = SessionFollower(folder)
        self._curves = CurveFollower(folder)
        self._curve_lock = threading.Lock()
        self._events = _Events(num_bytes=-1, newest=[])
        self._row: tuple[tuple[int, ...], dict[str, Any]] | None = None
        """Of a run that nobody writes, and how long its journals were then."""
        self._is_reading = False

    def summary(self, *, now: float) -> dict[str, Any]:
        """The fields of `progress.json` as of `now`, in seconds since 1970, and the run's name."""
        with self._lock:
            session = self._session.session()
            return {"name": self.name, **msgspec.to_builtins(self._summary_of(session, now))}

    def row(self, *, now: float) -> dict[str, Any]:
        """The run in the list of all; where it cannot be read, why."""
        lengths = tuple(_size(each) for each in self._journals())
        if self._row is not None and self._row[0] == lengths and holder_of(self.folder.lock) is None:
            return self._row[1]
        try:
            summary = self.summary(now=now)
        except (CrashproofError, OSError) as error:
            return {"name": self.name, "health": "unreadable", "health_reason": str(error)}
        except Exception as error:
            # Whatever a run's files hold, the others have their rows.
            log.exception("The run in %s cannot be read.", self.folder.root)
            return {"name": self.name, "health": "unreadable", "health_reason": f"{type(error).__name__}: {error}"}
        row = {name: summary.get(name) for name in _OF_A_ROW} | {
            "loss": summary["loss_trend"]["current_loss"],
            "verdict": summary["loss_trend"]["verdict"],
        }
        self._row = (lengths, row) if summary["status"] != "running" else None
        return row

    def detail(self, *, now: float) -> dict[str, Any]:
        """All about the run but its curves."""
        with self._lock:
            session = self._session.session()
            summary = self._summary_of(session, now)
            detail = {
                "name": self.name,
                "now": now,
                "folder": str(self.folder.root),
                "summary": msgspec.to_builtins(summary),
                "attempts": [msgspec.to_builtins(each) for each in session.attempts],
                "checkpoints": _checkpoints(session),
                "evaluations": [msgspec.to_builtins(each) for each in session.evaluations],
                "config": _leaves_of(session.config),
                "config_hash": session.config_hash,
            }
            return detail | {"events": self._newest_events()}

    def curve(
        self, *, most_points: int, first_step: int | None = None, last_step: int | None = None
    ) -> dict[str, Any]:
        """The history of a range of steps; where a long journal is still being read, as far as that has come."""
        with self._curve_lock:
            is_read = self._curves.refresh(most_seconds=_FIRST_READING_SECONDS)
            curve = self._curves.curve(most_points=most_points, first_step=first_step, last_step=last_step)
            recomputed = [
                {"first_step": each.first_step, "last_step": each.last_step, "attempt": each.attempt}
                for each in self._curves.recomputed
            ]
        if not is_read:
            self._read_on()
        return _columns(curve.points) | {
            "num_updates": curve.num_updates,
            "is_decimated": curve.is_decimated,
            "end": curve.end,
            "num_bytes": curve.num_bytes,
            "is_complete": is_read,
            "recomputed": recomputed,
        }

    def tail(self, *, after: int) -> dict[str, Any]:
        """What was journalled behind an offset; `is_stale` where the page must draw its picture anew."""
        updates, end = [], after
        if not 0 <= after <= _size(self.folder.metrics):
            return {"is_stale": True, "end": 0}
        for line_end, update in self._curves.lines_after(after):
            updates.append(update)
            end = line_end
            if len(updates) > _MOST_NEW_UPDATES:
                return {"is_stale": True, "end": 0}
        if any(later.step <= earlier.step for earlier, later in pairwise(updates)):
            return {"is_stale": True, "end": 0}
        points = [point_of([update]) for update in updates]
        size = max(1, -(-len(points) // _MOST_NEW_POINTS))
        points = [joined(points[start : start + size]) for start in range(0, len(points), size)]
        return _columns(points) | {"is_stale": False, "end": end, "num_updates": len(updates)}

    def config(self) -> dict[str, str]:
        """Every key of the config with its value as JSON."""
        with self._lock:
            return _leaves_of(self._session.session().config)

    def _journals(self) -> tuple[Path, ...]:
        return self.folder.events, self.folder.metrics, self.folder.requests, self.folder.answers

    def _summary_of(self, session: TrainingSession, now: float) -> ProgressSummary:
        is_alive = holder_of(self.folder.lock) is not None
        return progress_summary(session, now=now, wall_clock_hours=session.wall_clock_hours, is_alive=is_alive)

    def _newest_events(self) -> list[dict[str, Any]]:
        num_bytes = _size(self.folder.events)
        if num_bytes != self._events.num_bytes:
            told = [_event(each) for each in RunReader(self.folder).events()]
            self._events = _Events(num_bytes=num_bytes, newest=told[-_MOST_EVENTS:])
        return self._events.newest

    def _read_on(self) -> None:
        """Read the rest of a long journal beside the answers."""
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
                # Somebody may be waiting to look at what there is.
                time.sleep(0.001)
        except (CrashproofError, OSError) as error:
            log.warning("Reading %s stopped: %s", self.folder.metrics, error)
        finally:
            self._is_reading = False


_OF_A_ROW = (
    *("name", "session_id", "status", "health", "health_reason", "progress_pct", "steps_completed"),
    *("total_steps_target", "estimated_remaining_hours", "elapsed_wall_clock_hours", "last_update_time"),
    *("api_cost", "attempt", "alerts_active"),
)


def json_bytes(answer: dict[str, Any]) -> bytes:
    """An answer as JSON; NaN and infinities become null, and what is no Unicode in a path is spelled out."""
    try:
        return msgspec.json.encode(answer)
    except UnicodeEncodeError:
        return msgspec.json.encode(_as_texts(answer))


def _as_texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {as_text(str(key)): _as_texts(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_texts(child) for child in value]
    return as_text(value) if isinstance(value, str) else value


def _columns(points: Sequence[CurvePoint]) -> dict[str, Any]:
    """Points turned on their side: one list per quantity, for the page's charts."""
    names = list(dict.fromkeys(name for point in points for name in point.series))
    is_single = all(point.num_updates == 1 for point in points)
    return {
        "first_step": [point.first_step for point in points],
        "step": [point.last_step for point in points],
        "time": [point.timestamp for point in points],
        "hours": [round(point.wall_clock_hours, 6) for point in points],
        "attempt": [point.attempt for point in points],
        "series": {name: _series(name, points, is_single=is_single) for name in names},
    }


def _series(name: str, points: Sequence[CurvePoint], *, is_single: bool) -> dict[str, Any]:
    buckets = [point.series.get(name) for point in points]
    series: dict[str, Any] = {
        "last": [None if each is None else _short(each.last) for each in buckets],
        # Few are: their places and how many.
        "non_finite": [[at, each.num_non_finite] for at, each in enumerate(buckets) if each and each.num_non_finite],
    }
    if is_single:
        return series
    return series | {
        "low": [None if each is None else _short(each.low) for each in buckets],
        "high": [None if each is None else _short(each.high) for each in buckets],
        "mean": [None if each is None else _short(each.mean) for each in buckets],
    }


def _short(value: float | None) -> float | None:
    """Seven digits are more than a screen shows; the journal has them all."""
    return None if value is None else float(f"{value:.7g}")


def _checkpoints(session: TrainingSession) -> list[dict[str, Any]]:
    superseded = set(session.checkpoints_superseded)
    known = [*session.checkpoints.values(), *session.checkpoints_beside]
    standing = [
        _checkpoint(each, is_superseded=each.checkpoint_step in superseded)
        for each in sorted(known, key=lambda each: each.checkpoint_step)[-_MOST_CHECKPOINTS:]
    ]
    return standing + [
        {"step": each.checkpoint_step, "path": each.checkpoint_path, "state": "set aside", "reason": each.reason}
        for each in session.checkpoints_set_aside
    ]


def _checkpoint(checkpoint: CheckpointMetadata, *, is_superseded: bool) -> dict[str, Any]:
    recorded = "recorded whole" if checkpoint.is_verifiable else "unverified"
    return {
        "step": checkpoint.checkpoint_step,
        "path": checkpoint.checkpoint_path,
        "state": "superseded" if is_superseded else recorded,
        "reason": "",
        "created_at": checkpoint.created_at,
        "num_bytes": checkpoint.num_bytes,
        "loss": checkpoint.metrics.loss if checkpoint.metrics else None,
        "tags": checkpoint.recovery_tags,
        "attempt": checkpoint.attempt,
        "evaluation": checkpoint.evaluation or {},
    }


def _event(event: Event) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(event)
    # Said elsewhere on the page, and long.
    for name in ("config", "config_hash", "v"):
        told.pop(name, None)
    if isinstance(told.get("checkpoint"), dict):
        told["checkpoint"] = told["checkpoint"].get("checkpoint_path")
        told["step"] = msgspec.to_builtins(event)["checkpoint"]["checkpoint_step"]
    told.pop("files", None)
    return told


def _leaves_of(config: Any, name: str = "") -> dict[str, str]:
    """Every key of a config, dotted, with its value as JSON; a value that is a book is cut."""
    if isinstance(config, dict) and (config or not name):
        leaves: dict[str, str] = {}
        for key, value in config.items():
            leaves |= _leaves_of(value, f"{name}.{key}" if name else str(key))
        return leaves
    text = msgspec.json.encode(config).decode()
    return {name: text if len(text) <= _MOST_CONFIG_CHARACTERS else f"{text[:_MOST_CONFIG_CHARACTERS]}…"}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0

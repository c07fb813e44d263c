"""Show a job's progress."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.formatting import as_dollars_text, as_duration
from crashproof.records.requests import Spending
from crashproof.teacher.jobs.generation import JobProgress

__all__ = ["show_job"]

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_OF_PACE = 60.0


@contextmanager
def show_job(*, stream: TextIO | None = None, clock: Clock = SYSTEM_CLOCK) -> Iterator[JobProgress]:
    """Show a live bar on a terminal, or else a plain line every ten seconds."""
    stream = stream or sys.stderr
    console = Console(file=stream)
    pace = _Pace(clock.steady)
    if not console.is_terminal:
        yield _Lines(stream, pace, clock.steady)
        return
    columns = (
        TextColumn("generate"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, refresh_per_second=4)
    try:
        yield _Bar(bar, bar.add_task("generate", total=None, facts=""), pace)
    finally:
        bar.stop()


class _Bar:
    def __init__(self, bar: Progress, task: TaskID, pace: _Pace) -> None:
        self._bar = bar
        self._task = task
        self._pace = pace

    def advance(self, done: int, num_questions: int, spending: Spending) -> None:
        # Started late, so that an early error is printed before the bar.
        self._bar.start()
        self._bar.update(self._task, completed=done, total=num_questions, facts=self._pace.facts(done, spending))


class _Lines:
    def __init__(self, stream: TextIO, pace: _Pace, steady: Callable[[], float]) -> None:
        self._stream = stream
        self._pace = pace
        self._steady = steady
        self._written_at = steady()

    def advance(self, done: int, num_questions: int, spending: Spending) -> None:
        if self._steady() - self._written_at < _SECONDS_BETWEEN_LINES:
            return
        self._written_at = self._steady()
        facts = self._pace.facts(done, spending)
        seconds = (num_questions - done) / self._pace.per_second if self._pace.per_second else None
        remaining = "" if seconds is None else f"  {as_duration(seconds)} left"
        self._stream.write(f"generate: {done:,} of {num_questions:,}  {facts}{remaining}\n")
        self._stream.flush()


class _Pace:
    """Requests per second over the last minute; answers already stored say nothing about the teacher's speed."""

    def __init__(self, steady: Callable[[], float]) -> None:
        self._steady = steady
        self._points = deque([(steady(), 0)])

    @property
    def per_second(self) -> float:
        (begun_at, had), (now, has) = self._points[0], self._points[-1]
        return (has - had) / max(1e-9, now - begun_at)

    def facts(self, done: int, spending: Spending) -> str:
        now = self._steady()
        self._points.append((now, done))
        while len(self._points) > 2 and self._points[0][0] < now - _SECONDS_OF_PACE:
            self._points.popleft()
        facts = [f"{self.per_second:.1f}/s"]
        if spending.spent:
            facts.append(f"{as_dollars_text(spending.spent)} spent")
        if spending.requests_in_doubt:
            facts.append(f"{spending.requests_in_doubt:,} in doubt")
        return "  ".join(facts)

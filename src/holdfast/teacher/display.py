"""Show how far a job has come."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from holdfast.records import Spending
from holdfast.teacher.generation import JobProgress
from holdfast.teacher.prices import as_dollars_text

__all__ = ["shown_job"]

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def shown_job(*, num_questions: int | None = None, stream: TextIO | None = None) -> Iterator[JobProgress]:
    """A live bar on a terminal; elsewhere one plain line every ten seconds."""
    stream = stream or sys.stderr
    console = Console(file=stream)
    if not console.is_terminal:
        yield _Lines(stream, num_questions)
        return
    columns = (
        TextColumn("generate"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as bar:
        yield _Bar(bar, bar.add_task("generate", total=num_questions, facts=""))


class _Bar:
    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar = bar
        self._task = task
        self._pace = _Pace()

    def advance(self, done: int, spending: Spending) -> None:
        self._bar.update(self._task, completed=done, facts=self._pace.facts(done, spending))


class _Lines:
    def __init__(self, stream: TextIO, num_questions: int | None) -> None:
        self._stream = stream
        self._total = f" of {num_questions:,}" if num_questions is not None else ""
        self._pace = _Pace()
        self._told_at = time.monotonic()

    def advance(self, done: int, spending: Spending) -> None:
        if time.monotonic() - self._told_at < _SECONDS_BETWEEN_LINES:
            return
        self._told_at = time.monotonic()
        self._stream.write(f"generate: {done:,}{self._total}  {self._pace.facts(done, spending)}\n")
        self._stream.flush()


class _Pace:
    def __init__(self) -> None:
        self._began_at = time.monotonic()

    def facts(self, done: int, spending: Spending) -> str:
        pace = done / max(1e-9, time.monotonic() - self._began_at)
        facts = f"{pace:.1f}/s  {as_dollars_text(spending.spent)} spent"
        if spending.requests_in_doubt:
            facts += f"  {spending.requests_in_doubt:,} in doubt"
        return facts

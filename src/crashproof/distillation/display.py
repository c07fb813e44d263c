"""Progress on the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

__all__ = ["ProgressDisplay", "hide_other_bars", "show_progress"]

_SECONDS_BETWEEN_LINES = 10.0

LazyNumber = Callable[[], float | None]
"""Called only when something is drawn: the newest loss, or the remaining seconds; None while unknown."""


class ProgressDisplay(Protocol):
    """A progress bar, or lines."""

    def advance(self, step: int, *, loss: LazyNumber | None = None, remaining: LazyNumber | None = None) -> None:
        """Show that a step is done."""
        ...


class _Hidden:
    """Shows nothing, off the main process."""

    def advance(self, step: int, *, loss: LazyNumber | None = None, remaining: LazyNumber | None = None) -> None:
        return


@contextmanager
def show_progress(
    title: str,
    *,
    total_steps: int,
    first_step: int = 0,
    unit: str = "step",
    stream: TextIO | None = None,
    is_shown: bool = True,
) -> Iterator[ProgressDisplay]:
    """Show a live bar on a terminal; elsewhere a line every ten seconds, and one at the end."""
    if not is_shown:
        yield _Hidden()
        return
    stream = stream or sys.stderr
    console = Console(file=stream)
    if not console.is_terminal:
        yield _Lines(title, total_steps, _Pace(first_step, unit), stream)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        task = progress.add_task(title, total=total_steps, completed=first_step, facts="")
        yield _Bar(progress, task, _Pace(first_step, unit))


def hide_other_bars() -> None:
    """Keep `transformers` from drawing its own progress bars in this process."""
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it so.


class _Bar:
    def __init__(self, progress: Progress, task: TaskID, pace: _Pace) -> None:
        self._progress = progress
        self._task = task
        self._pace = pace

    def advance(self, step: int, *, loss: LazyNumber | None = None, remaining: LazyNumber | None = None) -> None:
        facts = self._pace.facts(step, loss, remaining)
        self._progress.update(self._task, completed=step, facts=facts)


class _Lines:
    def __init__(self, title: str, total_steps: int, pace: _Pace, stream: TextIO) -> None:
        self._title = title
        self._total_steps = total_steps
        self._stream = stream
        self._pace = pace
        self._last_line_at = -_SECONDS_BETWEEN_LINES

    def advance(self, step: int, *, loss: LazyNumber | None = None, remaining: LazyNumber | None = None) -> None:
        now = time.monotonic()
        if step < self._total_steps and now - self._last_line_at < _SECONDS_BETWEEN_LINES:
            return
        self._last_line_at = now
        facts = self._pace.facts(step, loss, remaining)
        self._stream.write(f"{self._title}: {self._pace.unit} {step:,} of {self._total_steps:,}  {facts}\n")
        self._stream.flush()


class _Pace:
    """Steps per second since this display started."""

    def __init__(self, first_step: int, unit: str) -> None:
        self.unit = unit
        self._first_step = first_step
        self._started_at = time.monotonic()

    def facts(self, step: int, loss: LazyNumber | None, remaining: LazyNumber | None) -> str:
        elapsed = max(1e-9, time.monotonic() - self._started_at)
        pace = (step - self._first_step) / elapsed
        facts = f"{pace:.1f} {self.unit}s/s"
        newest_loss = loss() if loss is not None else None
        if newest_loss is not None:
            facts = f"loss {newest_loss:.4f}  {facts}"
        remaining_seconds = remaining() if remaining is not None else None
        if remaining_seconds is None:
            return facts
        minutes, seconds = divmod(round(remaining_seconds), 60)
        return f"{facts}  {minutes // 60}:{minutes % 60:02d}:{seconds:02d} left"

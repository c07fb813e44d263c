"""All runs under a folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from crashproof.cli.arguments import AsJson
from crashproof.cli.output import print_json, say, say_lines
from crashproof.cli.tables import aligned, compact, dollars, short_duration, terminal_width
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import CrashproofError, NotAFolder
from crashproof.formatting import as_text
from crashproof.reading.discovery import RunSearch, SkippedFolder
from crashproof.reading.glance import glance
from crashproof.records.progress import ProgressSummary
from crashproof.records.states import RunStatus

__all__ = ["runs"]

_HEADS = ("run", "state", "step", "loss", "verdict", "left", "cost", "age")
_RIGHT = frozenset({2, 3, 5, 6, 7})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One run of the list."""

    name: str
    path: str
    seconds_since_sign_of_life: float | None
    """None where it is unknown."""
    error: str | None = None
    """Why the run cannot be read."""
    summary: ProgressSummary | None = None
    """None where the run cannot be read."""
    damaged_pieces: int = 0

    def as_object(self) -> dict[str, object]:
        """The row in JSON: the fields of `progress.json` beside its own."""
        fields: dict[str, object] = msgspec.to_builtins(self)
        del fields["summary"]
        if self.summary is None:
            del fields["damaged_pieces"]
            return fields
        summary: dict[str, object] = msgspec.to_builtins(self.summary)
        return fields | summary


def runs(
    root: Annotated[Path, typer.Argument(help="The folder to search for runs.", metavar="ROOT")] = Path("."),
    as_json: AsJson = False,
) -> None:
    """List all runs under ROOT, newest first. Works on live runs and changes nothing.

    What cannot be read is listed with the reason. A `!` after the state
    means that a journal is damaged: see `crashproof verify`.

    Example: crashproof runs runs
    """
    if not root.is_dir():
        raise NotAFolder(root)
    now = time.time()
    search = RunSearch(root)
    found = [_read_row(as_text(name), folder, now) for name, folder in search.runs.items()]
    rows = sorted([*found, *(_odd_row(root, each) for each in [*search.odd, *search.skipped])], key=_age)
    if as_json:
        print_json({"root": str(root.absolute()), "runs": [row.as_object() for row in rows]})
    elif not rows:
        say(f"No runs found under {root}.")
    else:
        say_lines(_table(rows))


def _read_row(name: str, folder: RunFolder, now: float) -> _Row:
    try:
        return _read_summary(name, folder, now)
    except Exception as error:
        # Whatever a run's files hold, the others have their rows.
        since = _seconds_since_written(folder, now)
        return _Row(name=name, path=str(folder.root), seconds_since_sign_of_life=since, error=_reason(error))


def _odd_row(root: Path, odd: SkippedFolder) -> _Row:
    path = as_text(str(root.absolute() / odd.name))
    return _Row(name=as_text(odd.name), path=path, seconds_since_sign_of_life=None, error=odd.reason)


def _read_summary(name: str, folder: RunFolder, now: float) -> _Row:
    found = glance(folder, now=now)
    return _Row(
        name=name,
        path=str(folder.root),
        seconds_since_sign_of_life=now - found.last_seen,
        summary=found.summary,
        damaged_pieces=found.num_damaged,
    )


def _reason(error: Exception) -> str:
    if isinstance(error, CrashproofError):
        return error.message
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"{type(error).__name__}: {error}"


def _seconds_since_written(folder: RunFolder, now: float) -> float | None:
    try:
        return now - folder.progress.stat().st_mtime
    except OSError:
        return None


def _age(row: _Row) -> float:
    since = row.seconds_since_sign_of_life
    return float("inf") if since is None else since


def _table(rows: Sequence[_Row]) -> list[str]:
    cells = [_cells(row, row.summary) for row in rows if row.summary is not None]
    heads, *readable = aligned([_HEADS, *cells], right=_RIGHT, width=terminal_width())
    lines = iter(readable)
    shown = [next(lines) if row.summary is not None else f"{row.name}: cannot be read: {row.error}" for row in rows]
    return [heads, *shown] if cells else shown


def _cells(row: _Row, summary: ProgressSummary) -> list[str]:
    trend = summary.loss_trend
    hours = summary.estimated_remaining_hours if summary.status == RunStatus.RUNNING else None
    return [
        row.name,
        summary.health.replace("_", " ") + ("!" if row.damaged_pieces else ""),
        f"{compact(summary.steps_completed)}/{compact(summary.total_steps_target)}",
        f"{trend.current_loss:.4g}" if trend.has_data else "-",
        trend.verdict.replace("_", " "),
        short_duration(None if hours is None else hours * 3600),
        dollars(summary.api_cost) if summary.api_cost else "-",
        short_duration(row.seconds_since_sign_of_life),
    ]

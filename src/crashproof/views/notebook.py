"""A run at a glance in a notebook."""

from __future__ import annotations

import time
from dataclasses import dataclass
from decimal import Decimal
from html import escape
from pathlib import Path

from crashproof.formatting import ago, as_dollars_text, as_duration
from crashproof.reading.curves import CurveFollower
from crashproof.reading.run_reader import RunReader
from crashproof.records.progress import ProgressSummary
from crashproof.records.states import RunStatus
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.rules.saves.failures import failed_in_words
from crashproof.views.svg import CurveMarks, curve_svg

__all__ = ["Glance", "escaped", "marked_curve", "show"]

_MOST_POINTS = 360
_MOST_READING_SECONDS = 10.0
_STYLE = "font-family:system-ui,sans-serif;max-width:780px;line-height:1.5"


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """The state of a run at one moment; notebooks draw it, terminals print it."""

    name: str
    lines: tuple[str, ...]
    svg: str

    def __repr__(self) -> str:
        return "\n".join((self.name, *(f"  {line}" for line in self.lines)))

    def _repr_html_(self) -> str:
        lines = "<br>".join(map(escaped, self.lines))
        return f'<div style="{_STYLE}"><b>{escaped(self.name)}</b><br>{lines}{self.svg}</div>'


def show(run_dir: str | Path) -> Glance:
    """Show a run in a notebook: state, loss curve and cost, as of now.

    Needs no lock, no server and no script, and changes nothing.

    Raises:
        NotARun: the folder holds no run.
        NewerFormat: a newer version wrote the run.
    """
    reader = RunReader.open(Path(run_dir))
    now = time.time()
    summary = reader.progress(now=now)
    return Glance(name=str(run_dir), lines=tuple(_lines(summary, now)), svg=marked_curve(reader))


def marked_curve(reader: RunReader) -> str:
    """Draw the loss of the whole run as SVG, with attempts, checkpoints and recomputed steps.

    Of a long journal without `curves.jsonl`, only what is read in ten seconds is drawn.
    """
    follower = CurveFollower(reader.folder)
    follower.refresh(most_seconds=_MOST_READING_SECONDS)
    session = reader.session()
    starts = [(each.attempt, each.first_step) for each in session.attempts if each.first_step is not None]
    marks = CurveMarks(
        attempts=starts if len(starts) > 1 else (),
        checkpoints=sorted({each.checkpoint_step for each in CheckpointCatalog(session).all()}),
        recomputed=[(each.first_step, each.last_step) for each in follower.recomputed],
    )
    return curve_svg(follower.curve(most_points=_MOST_POINTS).points, marks=marks)


def escaped(text: object) -> str:
    """Escape text for HTML; spell out unprintable characters."""
    visible = "".join(each if each.isprintable() or each in "\n\t" else f"\\x{ord(each):02x}" for each in str(text))
    return escape(visible)


def _lines(summary: ProgressSummary, now: float) -> list[str]:
    trend = summary.loss_trend
    reason = f" ({summary.health_reason})" if summary.health_reason else ""
    lines = [
        f"{summary.health.replace('_', ' ')}{reason}",
        f"{summary.place} ({summary.progress_pct:.1f} %), last update {ago(summary.last_update_time, now)}",
    ]
    if trend.has_data:
        lines.append(f"loss {trend.current_loss:.4f}: {trend.verdict.replace('_', ' ')}")
    if summary.status == RunStatus.RUNNING and summary.estimated_remaining_hours is not None:
        lines.append(f"{as_duration(summary.estimated_remaining_hours * 3600)} remain")
    if summary.attempt > 1:
        lines.append(f"attempt {summary.attempt}; {summary.steps_recomputed:,} steps recomputed")
    if summary.last_checkpoint_step is not None:
        lines.append(f"newest checkpoint: step {summary.last_checkpoint_step:,}")
    if failed := failed_in_words(
        summary.failed_saves, done=summary.steps_completed, saved=summary.last_checkpoint_step
    ):
        lines.append(failed)
    if summary.api_cost:
        lines.append(f"paid to teachers: {as_dollars_text(Decimal(repr(summary.api_cost)))}")
    return lines

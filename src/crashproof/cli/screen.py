"""One screen of a run, as plain lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size

from crashproof.cli.output import clean
from crashproof.cli.plots import plot
from crashproof.cli.status import local_time
from crashproof.cli.tables import compact, cut, dollars, local_clock, named_values, short_duration
from crashproof.formatting import as_duration
from crashproof.records.curves import CurvePoint
from crashproof.records.events import (
    AlertCleared,
    AlertRaised,
    AnswersRecovered,
    AttemptEnded,
    AttemptStarted,
    CheckpointFailed,
    CheckpointRecorded,
    CheckpointRemoved,
    CheckpointSetAside,
    ConnectionFailed,
    DamageFound,
    EvaluationRecorded,
    Event,
    Paused,
    ReplayDiffered,
    ResumeChosen,
    SessionStarted,
    TargetChanged,
)
from crashproof.records.progress import ProgressSummary
from crashproof.records.states import RunStatus
from crashproof.rules.rank_times.comparison import slow_in_words

__all__ = ["Seen", "event_in_words", "plain_line", "screen_lines"]

_NUM_EVENTS = 3
_LEAST_PLOT_HEIGHT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is known of a run after one refresh."""

    name: str
    summary: ProgressSummary
    seconds_a_step: float | None
    points: Sequence[CurvePoint]
    curve_share: float
    """The share of the journal in `points`; below 1 while a long one is still being read."""
    events: Sequence[tuple[float, str]]
    """The newest, in order: time and text."""
    trouble: str
    """Why the newest refresh failed, or empty; the other fields are then those of the refresh before."""
    now: float
    """Seconds since 1970."""


def screen_lines(seen: Seen, *, width: int, height: int, is_unicode: bool) -> list[str]:
    """At most `height` lines of at most `width` columns; the curve fills the rest of the height."""
    summary = seen.summary
    reason = [summary.health_reason] if summary.health_reason else []
    above = [_title(seen, width), *reason, _bar(summary, width, is_unicode=is_unicode), _time(seen)]
    if not summary.is_job:
        above += [*_loss(summary), *_rates(seen), *_saved(seen)]
    above += _teacher(summary)
    below = [f"alert: {each}".replace("_", " ") for each in summary.alerts_active]
    below += [f"{local_clock(moment)} {words}" for moment, words in seen.events[-_NUM_EVENTS:]]
    below += [f"refresh failed: {seen.trouble}"] if seen.trouble else []
    room = height - len(above) - len(below)
    picture: list[str] = []
    if room >= _LEAST_PLOT_HEIGHT and seen.points:
        picture = plot(seen.points, width=width, height=room, is_unicode=is_unicode)
        if seen.curve_share < 1:
            picture[-1] = f"{picture[-1].rstrip()}  ({100 * seen.curve_share:.0f} % read so far)"
    return [_fitted(line, width, is_unicode=is_unicode) for line in [*above, *picture, *below][:height]]


def plain_line(seen: Seen) -> str:
    """The same as one line, for a log."""
    summary, trend = seen.summary, seen.summary.loss_trend
    words = [f"{local_clock(seen.now)} {seen.name}: {summary.health.replace('_', ' ')}", summary.place]
    if trend.has_data:
        words.append(f"loss {trend.current_loss:.4g} ({trend.verdict.replace('_', ' ')})")
    if summary.status == RunStatus.RUNNING and summary.estimated_remaining_hours is not None:
        words.append(f"{short_duration(summary.estimated_remaining_hours * 3600)} left")
    if summary.health_reason:
        words.append(summary.health_reason)
    return ", ".join(words)


def event_in_words(event: Event) -> str | None:
    """A short description of an event; None for events of no interest to a viewer."""
    match event:
        case SessionStarted():
            return f"session {event.session_id} started"
        case TargetChanged():
            return f"target changed to {event.total_steps:,} steps"
        case AttemptStarted():
            return f"attempt {event.attempt} started: process {event.pid} on {event.host}"
        case AttemptEnded():
            return f"attempt {event.attempt} ended: {event.how}" + (f", {event.error}" if event.error else "")
        case CheckpointRecorded():
            return f"checkpoint at step {event.checkpoint.checkpoint_step:,}: {event.checkpoint.checkpoint_path}"
        case CheckpointFailed():
            return f"the save at step {event.step:,} failed: {event.error}"
        case CheckpointRemoved():
            return f"{len(event.checkpoints)} checkpoint(s) removed by the retention rule"
        case CheckpointSetAside():
            return f"checkpoint {event.checkpoint_path} quarantined: {event.reason}"
        case EvaluationRecorded():
            return f"evaluation at step {event.step:,}: {named_values(event.results)}"
        case ResumeChosen():
            return f"resuming at step {event.step:,} from {event.checkpoint_path}"
        case ConnectionFailed():
            return f"teacher request failed after {event.retry_count} retries: {event.error}"
        case Paused():
            return f"paused for {as_duration(event.seconds)}"
        case AnswersRecovered():
            return f"{event.count:,} answers reused from the store"
        case ReplayDiffered():
            return f"step {event.step:,} had a different loss when it was recomputed"
        case DamageFound():
            return f"damage in {event.file} quarantined: {event.reason}"
        case AlertRaised():
            return f"alert {event.kind.replace('_', ' ')}: {event.message}"
        case AlertCleared():
            return f"alert {event.kind.replace('_', ' ')} cleared"
        case _:
            return None


def _title(seen: Seen, width: int) -> str:
    summary = seen.summary
    state = summary.health.replace("_", " ").upper()
    if summary.status == RunStatus.RUNNING:
        state += f"  process {summary.attempt_pid} on {summary.attempt_host}"
    if summary.attempt > 1:
        state += f"  attempt {summary.attempt}"
    state, clock = clean(state), local_clock(seen.now)
    name = cut(clean(seen.name), max(8, width - len(state) - len(clock) - 4))
    line = f"{name}  {state}"
    return f"{line}{clock:>{max(len(clock) + 2, width - len(line))}}"


def _bar(summary: ProgressSummary, width: int, *, is_unicode: bool) -> str:
    done, target = summary.steps_completed, summary.total_steps_target
    words = f" {summary.progress_pct:5.1f} %  {done:,} of {target:,}"
    room = max(10, width - len(words) - 2)
    filled = round(room * summary.progress_pct / 100)
    full, empty = ("█", "░") if is_unicode else ("#", ".")
    return f"[{full * filled}{empty * (room - filled)}]{words}"


def _time(seen: Seen) -> str:
    summary = seen.summary
    trained = (
        f"{'working' if summary.is_job else 'trained'} for {as_duration(summary.elapsed_wall_clock_hours * 3600)}"
    )
    since = summary.seconds_since_update
    update = "no update yet" if since is None else f"last update {as_duration(max(0.0, since))} ago"
    if summary.is_finished:
        return f"time   nothing remains, {trained}, {update}"
    hours = summary.estimated_remaining_hours
    low, high = summary.estimated_remaining_hours_low, summary.estimated_remaining_hours_high
    if hours is None or low is None or high is None:
        return f"time   remaining time unknown, {trained}, {update}"
    left = f"{short_duration(hours * 3600)} left ({short_duration(low * 3600)} to {short_duration(high * 3600)})"
    if summary.status == RunStatus.RUNNING:
        left += f", done {local_time(summary.estimated_finish_time, seen.now)}"
    return f"time   {left}, {update}"


def _loss(summary: ProgressSummary) -> list[str]:
    trend = summary.loss_trend
    if not trend.has_data:
        return []
    average = "-" if trend.moving_avg_loss is None else f"{trend.moving_avg_loss:.4g}"
    parts = "".join(f"  {name} {value:.4g}" for name, value in summary.loss_components.items())
    verdict = trend.verdict.replace("_", " ")
    return [f"loss   {trend.current_loss:.4g}, average {average}, {verdict} {parts}".rstrip()]


def _rates(seen: Seen) -> list[str]:
    summary = seen.summary
    words = []
    if summary.learning_rate is not None:
        words.append(f"learning rate {summary.learning_rate:.3g}")
    if seen.seconds_a_step:
        pace = seen.seconds_a_step
        words.append(f"{pace:.3g} s/step" if pace >= 1 else f"{compact(round(1 / pace))} steps/s")
    if summary.throughput_tokens_per_sec:
        words.append(f"{compact(round(summary.throughput_tokens_per_sec))} tokens/s")
    words.append(f"goodput {100 * summary.goodput_seconds.goodput_fraction:.0f} %")
    slow = slow_in_words(summary.rank_times)
    return [f"pace   {', '.join(words)}", *([f"ranks  {slow}"] if slow else [])]


def _saved(seen: Seen) -> list[str]:
    summary = seen.summary
    step = summary.last_checkpoint_step
    kept = (
        "no checkpoint yet"
        if step is None
        else f"newest checkpoint at step {step:,} ({summary.checkpoints_count} in total)"
    )
    if summary.steps_recomputed:
        kept += f"; {summary.steps_recomputed:,} steps recomputed"
    if summary.failed_saves.in_a_row:
        kept += f"; {summary.failed_saves.in_a_row:,} failed since: {summary.failed_saves.error}"
    lines = [f"saved  {kept}"]
    if summary.evaluation_step is not None:
        lines.append(f"eval   step {summary.evaluation_step:,}: {named_values(summary.evaluation)}")
    return lines


def _teacher(summary: ProgressSummary) -> list[str]:
    if not summary.api_responses_saved and not summary.connection_failures:
        return []
    words = f"{dollars(summary.api_cost)} for {summary.api_responses_saved:,} answers"
    words += f", {summary.api_responses_recovered:,} reused, {summary.connection_failures:,} failures"
    return [f"cost   {words}"]


def _fitted(line: str, width: int, *, is_unicode: bool) -> str:
    line = clean(line)
    if not is_unicode:
        line = line.replace("…", "~").encode("ascii", "backslashreplace").decode()
    if cell_len(line) <= width:
        return line
    return set_cell_size(line, width - 1) + ("…" if is_unicode else "~")

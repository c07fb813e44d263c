"""The state of a run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from msgspec import Struct

from crashproof.checkpoints.select import choose_for
from crashproof.checkpoints.verify import Verification
from crashproof.cli.arguments import AsJson, Folder
from crashproof.cli.exit_codes import exit_code_for
from crashproof.cli.output import print_json, say_lines
from crashproof.cli.tables import dollars, named_values
from crashproof.errors import NoUsableCheckpoint
from crashproof.formatting import ago, as_duration
from crashproof.medians import median
from crashproof.reading.run_reader import RunReader
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.progress import GoodputShare, ProgressSummary
from crashproof.records.session import TrainingSession
from crashproof.records.states import LossVerdict, RunStatus
from crashproof.rules.bad_steps.finding import counts_in_words
from crashproof.rules.rank_times.comparison import in_words
from crashproof.rules.saves.failures import failed_in_words
from crashproof.rules.supervision.words import supervision_in_words

__all__ = ["RestartPoint", "local_time", "restart_point", "status"]

_VERDICTS = {
    LossVerdict.PLATEAU: "plateau, neither falling nor rising",
    LossVerdict.DIVERGING: "diverging, rising by more than its noise",
    LossVerdict.UNSTABLE: "unstable, with spikes or growing noise",
    LossVerdict.NON_FINITE: "non-finite (NaN or infinite)",
    LossVerdict.UNKNOWN: "too few updates for a verdict",
}
_VERIFICATIONS = {
    Verification.NOW: "read and intact",
    Verification.ON_RECORD: "verified earlier, unchanged since",
    Verification.NONE: "cannot be verified",
}
_OVERHEADS = {
    "recomputed": "recomputed steps",
    "checkpointing": "checkpoints",
    "evaluating": "evaluation",
    "paused": "pauses",
    "hung": "hangs",
    "down": "downtime",
    "starting": "startup",
}


class RestartPoint(Struct, frozen=True, kw_only=True):
    """Where a restart would resume."""

    step: int | None
    """None where a restart would end with an error."""
    checkpoint: str | None
    passed_over: list[tuple[str, str]]
    """Newer checkpoints that cannot be used: each path with the reason."""
    verification: Verification = Verification.NONE
    """How it is known that the checkpoint is intact."""

    @property
    def in_words(self) -> str:
        """What a restart does, such as `would resume at step 1,000 from checkpoint_1000.pt`."""
        if self.checkpoint is not None:
            return f"would resume at step {self.step:,} from {self.checkpoint}"
        if self.step is None:
            return "would end with an error: no checkpoint can be used"
        return "would begin at step 0: no checkpoint was recorded"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """Everything that is printed about a run."""

    folder: Path
    summary: ProgressSummary
    restart: RestartPoint
    usual_seconds: float | None
    """Between two updates."""
    now: float
    """Seconds since 1970."""


def status(
    folder: Folder,
    verify: Annotated[bool, typer.Option("--verify", help="Read the checkpoint to resume from.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the state of a run and where a restart would resume. Works on a live run and changes nothing.

    Reports whether the process is alive (it holds a lock), whether the loss is
    improving, the remaining time, the cost, and where a restart would resume.
    A checkpoint is read only with --verify, or if its size, time or inode is
    not the one it had when it was verified last. A restart reads it in any case.

    Exit codes: 0 running, starting or complete; 2 error; 3 stalled;
    4 diverging or non-finite loss; 5 crashed, or ended by an exception;
    6 ended before the last step, and can be started again; 7 not started;
    8 checkpoints cannot be saved.

    Example: crashproof status runs/quickstart || echo "needs attention"
    """
    reader = RunReader.open(folder)
    now = time.time()
    session = reader.session()
    look = _Look(
        folder=folder,
        summary=reader.progress(now=now),
        restart=restart_point(reader, session, trusts_record=not verify),
        usual_seconds=_usual_seconds(session.metrics_history),
        now=now,
    )
    if as_json:
        print_json(
            msgspec.to_builtins(look.summary)
            | {"resume": look.restart, "usual_seconds_between_updates": look.usual_seconds}
        )
    else:
        say_lines(_job_lines(look) if session.is_job else _training_lines(look))
    raise typer.Exit(exit_code_for(look.summary.health))


def restart_point(reader: RunReader, session: TrainingSession, *, trusts_record: bool = True) -> RestartPoint:
    """Where a restart would resume; step 0 without a checkpoint where none was recorded.

    With `trusts_record`, files that are unchanged since they were verified are not read.
    """
    try:
        choice = choose_for(session, reader.folder, trusts_record=trusts_record)
    except NoUsableCheckpoint as error:
        return RestartPoint(
            step=None, checkpoint=None, passed_over=[(path, reason) for path, reason in error.refused]
        )
    if choice is None:
        return RestartPoint(step=0, checkpoint=None, passed_over=[])
    return RestartPoint(
        step=choice.checkpoint.checkpoint_step,
        checkpoint=choice.checkpoint.checkpoint_path,
        passed_over=[(each.checkpoint_path, reason) for each, reason in [*choice.suspect, *choice.refused]],
        verification=choice.verification,
    )


def _usual_seconds(updates: Sequence[MetricsSnapshot]) -> float | None:
    """The usual time between two updates of the newest attempt; None before it has two."""
    own = [line for line in updates if line.attempt == updates[-1].attempt]
    intervals = [later.timestamp - earlier.timestamp for earlier, later in pairwise(own)]
    forward = [each for each in intervals if each >= 0]
    return median(forward) if forward else None


def local_time(moment: float | None, now: float) -> str:
    """`today 15:02`, `Tue 14 Oct 15:02`, `14 Oct 2031`; local time."""
    if moment is None:
        return "unknown"
    try:
        then, today = time.localtime(moment), time.localtime(now)
    except (OverflowError, ValueError, OSError):
        return "beyond any calendar"
    if then[:3] == today[:3]:
        return time.strftime("today %H:%M", then)
    return time.strftime("%a %d %b %H:%M" if then.tm_year == today.tm_year else "%d %b %Y", then)


def _cost(summary: ProgressSummary) -> str:
    """`2 h 10 min trained`, `$1.20 to teachers`, `$0.80 by earlier sessions`."""
    words = [f"{as_duration(summary.elapsed_wall_clock_hours * 3600)} trained"]
    if summary.api_cost or summary.api_responses_saved:
        words.append(f"{dollars(summary.api_cost)} to teachers")
    if summary.api_cost_in_doubt:
        words.append(f"at most {dollars(summary.api_cost_in_doubt)} in doubt")
    if summary.api_cost_before:
        words.append(f"{dollars(summary.api_cost_before)} by earlier sessions")
    return ", ".join(words)


def _training_lines(look: _Look) -> list[str]:
    summary, restart = look.summary, look.restart
    trend = summary.loss_trend
    lines = [
        f"{look.folder}: {_state(summary)}",
        f"  progress    {summary.place} ({summary.progress_pct:.1f} %), "
        f"last update {ago(summary.last_update_time, look.now)}",
        *_updates(look),
        f"  time        {_remaining(summary, look.now)}",
    ]
    if trend.has_data:
        average = "unknown" if trend.moving_avg_loss is None else f"{trend.moving_avg_loss:.4f}"
        verdict = _VERDICTS.get(trend.verdict, trend.verdict)
        lines.append(f"  loss        {trend.current_loss:.4f}, moving average {average}: {verdict}")
    if summary.evaluation_step is not None:
        lines.append(f"  evaluation  step {summary.evaluation_step:,}: {named_values(summary.evaluation)}")
    lines.append(f"  cost        {_cost(summary)}; goodput {_goodput(summary.goodput_seconds)}")
    if summary.rank_times is not None:
        first, *more = in_words(summary.rank_times)
        lines += [f"  ranks       {first}", *(f"              {line}" for line in more)]
    how = "" if restart.checkpoint is None else f" ({_VERIFICATIONS[restart.verification]})"
    lines.append(f"  restart     {restart.in_words}{how}")
    if failed := _failed_saves(summary):
        lines.append(f"  saves       {failed}")
    if summary.bad_steps_found or summary.samples_left_out:
        lines.append(f"  bad steps   {_bad_steps(summary)}")
    lines += [f"              skips {path}: {reason}" for path, reason in restart.passed_over]
    if summary.attempt > 1:
        lines.append(f"  attempts    {summary.attempt}; {summary.steps_recomputed:,} steps recomputed")
    lines += _supervision(summary)
    if summary.replay_differed_at is not None:
        lines.append(f"  warning     step {summary.replay_differed_at:,} had a different loss when it was recomputed")
    return lines + _warnings(summary) + _teacher(summary)


def _job_lines(look: _Look) -> list[str]:
    summary = look.summary
    lines = [
        f"{look.folder}: {_state(summary)}",
        f"  progress    {summary.steps_completed:,} of {summary.total_steps_target:,} requests completed"
        f" ({summary.progress_pct:.1f} %), last activity {ago(summary.last_update_time, look.now)}",
        f"  time        {_remaining(summary, look.now)}",
        "  restart     would send the requests that have no answer yet",
    ]
    if summary.attempt > 1:
        lines.append(f"  attempts    {summary.attempt}")
    lines += _supervision(summary)
    return lines + _warnings(summary) + _teacher(summary)


def _supervision(summary: ProgressSummary) -> list[str]:
    return [
        f"  {'' if place else 'supervised':<11} {line}"
        for place, line in enumerate(supervision_in_words(summary.supervision))
    ]


def _warnings(summary: ProgressSummary) -> list[str]:
    lines = [f"  alert       {each.replace('_', ' ')}" for each in summary.alerts_active]
    if summary.damage_found:
        lines.append(f"  warning     {summary.damage_found} damaged journal record(s) quarantined")
    return lines


def _failed_saves(summary: ProgressSummary) -> str:
    return failed_in_words(summary.failed_saves, done=summary.steps_completed, saved=summary.last_checkpoint_step)


def _bad_steps(summary: ProgressSummary) -> str:
    counts = counts_in_words(
        found=summary.bad_steps_found, rollbacks=summary.rollbacks, left_out=summary.samples_left_out
    )
    return f"{counts}; the newest: {summary.newest_bad_step}" if summary.newest_bad_step else counts


def _teacher(summary: ProgressSummary) -> list[str]:
    has_asked = summary.api_responses_saved or summary.api_requests_in_doubt or summary.connection_failures
    if not has_asked and not summary.api_responses_recovered:
        return []
    lines = [
        f"  teacher     {summary.api_responses_saved:,} answers paid ({dollars(summary.api_cost)}), "
        f"{summary.api_responses_recovered:,} reused from the store ({dollars(summary.api_cost_saved)} saved), "
        f"{summary.connection_failures:,} failures"
    ]
    if summary.api_requests_in_doubt:
        lines.append(
            f"              {summary.api_requests_in_doubt:,} requests in doubt: no answer received, "
            f"at most {dollars(summary.api_cost_in_doubt)} charged"
        )
    if summary.api_responses_bad or summary.api_cost_wasted:
        lines.append(
            f"              {summary.api_responses_bad:,} unusable answers "
            f"({dollars(summary.api_cost_wasted)} wasted)"
        )
    return lines


def _state(summary: ProgressSummary) -> str:
    health = summary.health.replace("_", " ")
    if summary.status == RunStatus.RUNNING:
        health += f" as process {summary.attempt_pid} on {summary.attempt_host}"
    return f"{health}: {summary.health_reason}" if summary.health_reason else health


def _updates(look: _Look) -> list[str]:
    if look.summary.patience_seconds is None:
        return []
    often = "" if look.usual_seconds is None else f"usually one every {_short_seconds(look.usual_seconds)}; "
    return [f"  updates     {often}stalled after {as_duration(look.summary.patience_seconds)} without one"]


def _short_seconds(seconds: float) -> str:
    return as_duration(seconds) if seconds >= 10 else f"{seconds:.2g} s"


def _goodput(seconds: GoodputShare) -> str:
    words = f"{100 * seconds.goodput_fraction:.1f} %"
    largest = max(_OVERHEADS, key=lambda name: float(getattr(seconds, name)))
    lost: float = getattr(seconds, largest)
    return f"{words} (largest overhead: {_OVERHEADS[largest]}, {as_duration(lost)})" if lost else words


def _remaining(summary: ProgressSummary, now: float) -> str:
    hours = summary.estimated_remaining_hours
    low, high = summary.estimated_remaining_hours_low, summary.estimated_remaining_hours_high
    if hours is None or low is None or high is None:
        return "remaining time unknown"
    if summary.is_finished:
        return "nothing remains"
    left = f"{as_duration(hours * 3600)} remaining ({as_duration(low * 3600)} to {as_duration(high * 3600)})"
    if summary.status != RunStatus.RUNNING:
        return left
    return f"{left}, done {local_time(summary.estimated_finish_time, now)}"

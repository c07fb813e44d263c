"""How a run stands."""

from __future__ import annotations

import time
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import typer

from crashproof.checkpoints.select import choose_for
from crashproof.cli.arguments import AsJson, Folder
from crashproof.cli.exit_codes import exit_code_for
from crashproof.cli.output import print_json, say
from crashproof.errors import NoUsableCheckpoint
from crashproof.formatting import ago, as_dollars_text, as_duration
from crashproof.reading.run_reader import RunReader
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.session import TrainingSession

__all__ = ["cost_in_words", "local_time", "status", "usual_seconds", "what_a_restart_resumes"]

_VERDICTS = {
    "improving": "it falls: improving",
    "plateau": "it neither falls nor rises: plateau",
    "diverging": "it rises by more than its noise: diverging",
    "unstable": "spikes or growing noise: unstable",
    "non_finite": "NaN or infinite: non_finite",
    "unknown": "too few updates to tell",
}


def status(folder: Folder, as_json: AsJson = False) -> None:
    """Say how a run stands and what a restart would resume. Works on a live run and changes nothing.

    Is it alive (its process is known by the lock that it holds), does it learn,
    when is it done, what has it cost, and where would a restart go on?

    Exit codes: 0 it runs, starts or is complete; 2 an error; 3 stalled;
    4 diverging, or its loss is not finite; 5 crashed, or an exception ended it;
    6 it ended before its last step and can be started again; 7 not started.

    Example: crashproof status runs/quickstart || echo "look at it"
    """
    reader = RunReader.open(folder)
    now = time.time()
    session = reader.session()
    summary = reader.summary(now=now)
    summary["resume"] = what_a_restart_resumes(reader, session)
    summary["usual_seconds_between_updates"] = usual_seconds(session.metrics_history)
    if as_json:
        print_json(summary)
    else:
        for line in (_job_in_words if session.is_job else _in_words)(summary, folder, now):
            say(line)
    raise typer.Exit(exit_code_for(summary["health"]))


def what_a_restart_resumes(reader: RunReader, session: TrainingSession) -> dict[str, Any]:
    """`step` and `checkpoint`, and `passed_over` with reasons; step None where a restart would be an error."""
    try:
        choice = choose_for(session, reader.folder)
    except NoUsableCheckpoint as error:
        return {"step": None, "checkpoint": None, "passed_over": [list(each) for each in error.refused]}
    if choice is None:
        return {"step": 0, "checkpoint": None, "passed_over": []}
    return {
        "step": choice.checkpoint.checkpoint_step,
        "checkpoint": choice.checkpoint.checkpoint_path,
        "passed_over": [[each.checkpoint_path, reason] for each, reason in choice.refused],
    }


def usual_seconds(updates: Sequence[MetricsSnapshot]) -> float | None:
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


def cost_in_words(summary: dict[str, Any]) -> str:
    """`2 h 10 min trained`, `$1.20 to teachers`, `$0.80 by earlier sessions`."""
    words = [f"{as_duration(summary['elapsed_wall_clock_hours'] * 3600)} trained"]
    if summary["api_cost"] or summary["api_responses_saved"]:
        words.append(f"{_dollars(summary['api_cost'])} to teachers")
    if summary["api_cost_in_doubt"]:
        words.append(f"at most {_dollars(summary['api_cost_in_doubt'])} in doubt")
    if summary["api_cost_before"]:
        words.append(f"{_dollars(summary['api_cost_before'])} by earlier sessions")
    return ", ".join(words)


def _in_words(summary: dict[str, Any], folder: Path, now: float) -> list[str]:
    trend, resume = summary["loss_trend"], summary["resume"]
    lines = [
        f"{folder}: {_state(summary)}",
        f"  progress    step {summary['steps_completed']:,} of {summary['total_steps_target']:,}"
        f" ({summary['progress_pct']:.1f} %), last update {ago(summary['last_update_time'], now)}",
        *_usual(summary),
        f"  time        {_remaining(summary, now)}",
    ]
    if trend["has_data"]:
        average = "unknown" if trend["moving_avg_loss"] is None else f"{trend['moving_avg_loss']:.4f}"
        verdict = _VERDICTS.get(trend["verdict"], trend["verdict"])
        lines.append(f"  loss        {trend['current_loss']:.4f}, moving average {average}: {verdict}")
    if summary["evaluation_step"] is not None:
        results = ", ".join(f"{name} {value:.4g}" for name, value in summary["evaluation"].items())
        lines.append(f"  evaluation  step {summary['evaluation_step']:,}: {results}")
    lines.append(f"  cost        {cost_in_words(summary)}; goodput {_goodput(summary)}")
    lines.append(f"  restart     {_restart(resume)}")
    lines += [f"              passes over {path}: {reason}" for path, reason in resume["passed_over"]]
    if summary["attempt"] > 1:
        lines.append(f"  attempts    {summary['attempt']}; {summary['steps_recomputed']:,} steps were computed again")
    if summary["replay_differed_at"] is not None:
        lines.append(f"  warning     step {summary['replay_differed_at']:,} came out different when repeated")
    return lines + _alerts(summary) + _damage(summary) + _teacher(summary)


def _job_in_words(summary: dict[str, Any], folder: Path, now: float) -> list[str]:
    lines = [
        f"{folder}: {_state(summary)}",
        f"  progress    {summary['steps_completed']:,} of {summary['total_steps_target']:,} questions have an end"
        f" ({summary['progress_pct']:.1f} %), last sign of life {ago(summary['last_update_time'], now)}",
        f"  time        {_remaining(summary, now)}",
        "  restart     would ask what has no answer yet",
    ]
    if summary["attempt"] > 1:
        lines.append(f"  attempts    {summary['attempt']}")
    return lines + _alerts(summary) + _damage(summary) + _teacher(summary)


def _alerts(summary: dict[str, Any]) -> list[str]:
    active = summary.get("alerts_active") or []
    return [f"  alert       {each.replace('_', ' ')}" for each in active]


def _damage(summary: dict[str, Any]) -> list[str]:
    if not summary["damage_found"]:
        return []
    return [f"  warning     {summary['damage_found']} damaged piece(s) of journals were set aside"]


def _teacher(summary: dict[str, Any]) -> list[str]:
    has_asked = summary["api_responses_saved"] or summary["api_requests_in_doubt"] or summary["connection_failures"]
    if not has_asked and not summary["api_responses_recovered"]:
        return []
    lines = [
        f"  teacher     {summary['api_responses_saved']:,} answers paid ({_dollars(summary['api_cost'])}), "
        f"{summary['api_responses_recovered']:,} served again ({_dollars(summary['api_cost_saved'])} saved), "
        f"{summary['connection_failures']:,} failures"
    ]
    if summary["api_requests_in_doubt"]:
        lines.append(
            f"              {summary['api_requests_in_doubt']:,} requests in doubt: paid for at most "
            f"{_dollars(summary['api_cost_in_doubt'])}, and never received"
        )
    if summary["api_responses_bad"] or summary["api_cost_wasted"]:
        lines.append(
            f"              {summary['api_responses_bad']:,} answers cannot be used "
            f"({_dollars(summary['api_cost_wasted'])} wasted)"
        )
    return lines


def _dollars(amount: float) -> str:
    return as_dollars_text(Decimal(repr(amount)))


def _state(summary: dict[str, Any]) -> str:
    health = summary["health"].replace("_", " ")
    words = (
        f"{health} as process {summary['attempt_pid']} on {summary['attempt_host']}"
        if summary["status"] == "running"
        else str(health)
    )
    return f"{words}: {summary['health_reason']}" if summary["health_reason"] else words


def _usual(summary: dict[str, Any]) -> list[str]:
    usual, patience = summary["usual_seconds_between_updates"], summary["patience_seconds"]
    if patience is None:
        return []
    often = "" if usual is None else f"usually one every {_short_seconds(usual)}; "
    return [f"  updates     {often}none for {as_duration(patience)} would be a stall"]


def _short_seconds(seconds: float) -> str:
    return as_duration(seconds) if seconds >= 10 else f"{seconds:.2g} s"


def _goodput(summary: dict[str, Any]) -> str:
    seconds = summary["goodput_seconds"]
    fraction = seconds["goodput_fraction"]
    lost = {name: value for name, value in seconds.items() if name not in ("goodput_fraction", "productive")}
    most = max(lost, key=lambda name: lost[name], default=None)
    if most is None or not lost[most]:
        return f"{100 * fraction:.1f} %"
    return f"{100 * fraction:.1f} % (lost most to {most}: {as_duration(lost[most])})"


def _remaining(summary: dict[str, Any], now: float) -> str:
    hours = summary["estimated_remaining_hours"]
    if hours is None:
        return "remaining time unknown"
    if summary["steps_completed"] >= summary["total_steps_target"]:
        return "nothing remains"
    low = as_duration(summary["estimated_remaining_hours_low"] * 3600)
    high = as_duration(summary["estimated_remaining_hours_high"] * 3600)
    left = f"{as_duration(hours * 3600)} remain ({low} to {high})"
    if summary["status"] != "running":
        return left
    return f"{left}, done {local_time(summary['estimated_finish_time'], now)}"


def _restart(resume: dict[str, Any]) -> str:
    if resume["checkpoint"] is not None:
        return f"would resume at step {resume['step']:,} from {resume['checkpoint']}"
    if resume["step"] is None:
        return "would stop with an error: no checkpoint can be used"
    return "would begin at step 0: no checkpoint was recorded"

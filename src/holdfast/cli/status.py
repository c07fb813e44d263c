"""How a run stands."""

from __future__ import annotations

import time
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.checkpoints import choose_for
from holdfast.cli.output import print_json
from holdfast.errors import NoUsableCheckpoint
from holdfast.reader import RunReader
from holdfast.wording import ago, as_dollars_text, as_duration

__all__ = ["status"]


def status(
    folder: Annotated[Path, typer.Argument(help="The run's output folder.", metavar="DIR")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Say how a run stands and what a restart would resume. Works on a live run and changes nothing.

    Example: holdfast status runs/quickstart
    """
    reader = RunReader.open(folder)
    now = time.time()
    summary = reader.summary(now=now)
    summary["resume"] = _what_a_restart_resumes(reader)
    if as_json:
        print_json(summary)
        return
    is_job = reader.session().config.get("job") == "generate"
    for line in (_job_in_words if is_job else _in_words)(summary, folder, now):
        typer.echo(line)


def _what_a_restart_resumes(reader: RunReader) -> dict[str, Any]:
    session = reader.session()
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


def _in_words(summary: dict[str, Any], folder: Path, now: float) -> list[str]:
    trend, resume = summary["loss_trend"], summary["resume"]
    lines = [
        f"{folder}: {_state(summary)}",
        f"  progress    step {summary['steps_completed']:,} of {summary['total_steps_target']:,}"
        f" ({summary['progress_pct']:.1f} %), last update {ago(summary['last_update_time'], now)}",
        f"  time        trained {as_duration(summary['elapsed_wall_clock_hours'] * 3600)}, {_remaining(summary)}",
    ]
    if trend["has_data"]:
        average = "unknown" if trend["moving_avg_loss"] is None else f"{trend['moving_avg_loss']:.4f}"
        lines.append(f"  loss        {trend['current_loss']:.4f}, moving average {average}: {trend['verdict']}")
    if summary["evaluation_step"] is not None:
        results = ", ".join(f"{name} {value:.4g}" for name, value in summary["evaluation"].items())
        lines.append(f"  evaluation  step {summary['evaluation_step']:,}: {results}")
    lines.append(f"  restart     {_restart(resume)}")
    lines += [f"              passes over {path}: {reason}" for path, reason in resume["passed_over"]]
    if summary["attempt"] > 1:
        lines.append(f"  attempts    {summary['attempt']}; {summary['steps_recomputed']:,} steps were computed again")
    if summary["replay_differed_at"] is not None:
        lines.append(f"  warning     step {summary['replay_differed_at']:,} came out different when repeated")
    return lines + _damage(summary) + _teacher(summary)


def _job_in_words(summary: dict[str, Any], folder: Path, now: float) -> list[str]:
    lines = [
        f"{folder}: {_state(summary)}",
        f"  progress    {summary['steps_completed']:,} of {summary['total_steps_target']:,} questions have an end"
        f" ({summary['progress_pct']:.1f} %)",
        "  restart     would ask what has no answer yet",
    ]
    if summary["attempt"] > 1:
        lines.append(f"  attempts    {summary['attempt']}")
    return lines + _damage(summary) + _teacher(summary)


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
    if summary["status"] == "running":
        return f"running as process {summary['attempt_pid']} on {summary['attempt_host']}"
    if summary["status"] == "completed":
        return "complete"
    return str(summary["status"]).replace("_", " ")


def _remaining(summary: dict[str, Any]) -> str:
    hours = summary["estimated_remaining_hours"]
    if hours is None:
        return "remaining time unknown"
    if summary["steps_completed"] >= summary["total_steps_target"]:
        return "nothing remains"
    low = as_duration(summary["estimated_remaining_hours_low"] * 3600)
    high = as_duration(summary["estimated_remaining_hours_high"] * 3600)
    return f"{as_duration(hours * 3600)} remain ({low} to {high})"


def _restart(resume: dict[str, Any]) -> str:
    if resume["checkpoint"] is not None:
        return f"would resume at step {resume['step']:,} from {resume['checkpoint']}"
    if resume["step"] is None:
        return "would stop with an error: no checkpoint can be used"
    return "would begin at step 0: no checkpoint was recorded"

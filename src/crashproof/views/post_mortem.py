"""What became of a run, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from crashproof.checkpoints.select import choose_for
from crashproof.checkpoints.verify import problem_with
from crashproof.errors import NoUsableCheckpoint
from crashproof.formatting import ago, as_bytes
from crashproof.reading.run_reader import RunReader
from crashproof.records.events import Event
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.progress import ProgressSummary
from crashproof.records.session import AttemptRecord, TrainingSession
from crashproof.views.notebook import marked_curve

__all__ = ["PostMortem", "Surroundings", "examine"]

_LAST_UPDATES = 20
_LAST_EVENTS = 40
_LOW_DISK_BYTES = 1 << 30
_OF_NO_INTEREST = frozenset({"checkpoint_hashed", "checkpoint_recorded", "evaluation_recorded", "job_advanced"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the machine says that the run does not know."""

    host: str
    free_bytes: int | None
    """Where the run lies."""
    disk_bytes: int | None
    log_name: str | None
    """Of the file that the tail was read from."""
    log_tail: Sequence[str] = ()
    """Without secrets."""
    kernel_lines: Sequence[str] | None = None
    """What the kernel said of processes that it ended for want of memory; None where it may not be asked."""
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PostMortem:
    """All that can be found out about how a run ended."""

    name: str
    examined_at: float
    """Seconds since 1970."""
    state: str
    """The `health` of its summary."""
    sentence: str
    """What ended it, as far as the records tell."""
    clues: Sequence[str]
    next_step: str
    summary: ProgressSummary
    last_updates: Sequence[MetricsSnapshot]
    attempts: Sequence[AttemptRecord]
    events: Sequence[Event]
    """The rare ones of the newest attempt, the last ones first."""
    checkpoints: Sequence[dict[str, Any]]
    """`step`, `path`, `num_bytes`, `problem` (None: whole)."""
    damage: Sequence[str]
    config: dict[str, Any]
    surroundings: Surroundings
    curve: str
    """SVG; empty where there is none."""

    def as_object(self) -> dict[str, Any]:
        """The same for machines, without the picture."""
        return {
            "run": self.name,
            "examined_at": self.examined_at,
            "state": self.state,
            "sentence": self.sentence,
            "clues": list(self.clues),
            "next_step": self.next_step,
            "summary": msgspec.to_builtins(self.summary),
            "last_updates": [msgspec.to_builtins(each) for each in self.last_updates],
            "attempts": [msgspec.to_builtins(each) for each in self.attempts],
            "events": [msgspec.to_builtins(each) for each in self.events],
            "checkpoints": list(self.checkpoints),
            "damage": list(self.damage),
            "config": self.config,
            "host": self.surroundings.host,
            "free_bytes": self.surroundings.free_bytes,
            "log": self.surroundings.log_name,
            "log_tail": list(self.surroundings.log_tail),
            "kernel_lines": None if self.surroundings.kernel_lines is None else list(self.surroundings.kernel_lines),
        }


def examine(reader: RunReader, surroundings: Surroundings, *, name: str, now: float) -> PostMortem:
    """Read all that a run has left; every checkpoint is read to its last byte.

    Raises:
        NotARun: no session has begun.
        NewerFormat: it was written by a newer version.
    """
    session = reader.session()
    summary = reader.progress(now=now)
    damage = reader.problems()
    newest = session.attempts[-1] if session.attempts else None
    return PostMortem(
        name=name,
        examined_at=now,
        state=summary.health,
        sentence=_sentence(summary, newest, now),
        clues=_clues(summary, session, surroundings, damage),
        next_step=_next_step(summary, session, reader),
        summary=summary,
        last_updates=session.metrics_history[-_LAST_UPDATES:],
        attempts=session.attempts,
        events=_rare_events(reader, newest),
        checkpoints=_checkpoints(session, reader),
        damage=damage,
        config=session.config,
        surroundings=surroundings,
        curve=marked_curve(reader),
    )


def _sentence(summary: ProgressSummary, attempt: AttemptRecord | None, now: float) -> str:
    if attempt is None:
        return "No process has taken it up yet."
    who = f"Process {attempt.pid} on {attempt.host or 'an unknown host'} (attempt {attempt.attempt})"
    step = summary.place
    seen = ago(attempt.end or attempt.last_seen or None, now)
    match summary.health:
        case "crashed":
            return (
                f"{who} is gone and did not say good-bye: killed, or its machine went down. It was last seen {seen}, "
                f"at {step}."
            )
        case "raised":
            return f"{who} ended with an exception at {step}, {seen}: {attempt.error or 'no text was kept'}"
        case "preempted":
            return f"{who} was asked to stop, saved, and ended at {step}, {seen}."
        case "complete":
            return f"{who} has done all its steps, {seen}. Nothing is wrong with its end."
        case "ended_early":
            why = f": {attempt.error}" if attempt.error else "."
            return f"{who} closed the run in good order before its last step, at {step}, {seen}{why}"
        case "replaced":
            return f"{who} gave the run to another tracker of the same process, which is gone, at {step}."
        case state:
            reason = f": {summary.health_reason}" if summary.health_reason else ""
            return f"It is not dead. {who} still writes it, at {step} ({state.replace('_', ' ')}{reason})."


def _clues(
    summary: ProgressSummary, session: TrainingSession, surroundings: Surroundings, damage: Sequence[str]
) -> list[str]:
    clues = []
    trend = summary.loss_trend
    if surroundings.kernel_lines:
        clues.append("The kernel has ended processes for want of memory; its lines are below.")
    if surroundings.free_bytes is not None and surroundings.free_bytes < _LOW_DISK_BYTES:
        clues.append(f"The disk is nearly full: {as_bytes(surroundings.free_bytes)} are free.")
    if trend.num_non_finite:
        clues.append(f"{trend.num_non_finite} of the last {trend.window_size} losses are not finite.")
    if trend.verdict in ("diverging", "unstable"):
        clues.append(f"The loss was {trend.verdict} before the end.")
    if summary.replay_differed_at is not None:
        clues.append(f"Step {summary.replay_differed_at:,} came out different when it was computed again.")
    if damage:
        clues.append(f"Its journals have {len(damage)} damaged piece(s); `crashproof repair` sets them aside.")
    if session.connection_failures:
        clues.append(f"Requests to a teacher had failed: {session.connection_failures:,}.")
    crashed = [each.attempt for each in session.attempts if each.how == "crashed"]
    if len(crashed) > 1:
        clues.append(f"{len(crashed)} earlier attempts ended without a word too: {', '.join(map(str, crashed))}.")
    return clues


def _next_step(summary: ProgressSummary, session: TrainingSession, reader: RunReader) -> str:
    if summary.health == "complete":
        return "Nothing needs to be done."
    if summary.status == "running":
        return "Let it go on, or ask it to save and end: crashproof stop DIR."
    if session.is_job:
        return "Start the same command again: it asks what has no answer yet."
    try:
        choice = choose_for(session, reader.folder)
    except NoUsableCheckpoint as error:
        return f"A restart would stop with an error. {error}"
    if choice is None:
        return "Start the same command again: it begins at step 0, as no checkpoint was recorded."
    step = choice.checkpoint.checkpoint_step
    again = max(0, summary.steps_completed - step)
    passed = f" It passes over {len(choice.refused)} newer one(s) that cannot be used." if choice.refused else ""
    return (
        f"Start the same command again: it resumes at step {step:,} from {choice.checkpoint.checkpoint_path}, and "
        f"computes {again:,} steps again.{passed}"
    )


def _rare_events(reader: RunReader, newest: AttemptRecord | None) -> list[Event]:
    number = newest.attempt if newest else None
    rare = [
        each
        for each in reader.events()
        if each.attempt == number and str(each.__struct_config__.tag) not in _OF_NO_INTEREST
    ]
    return rare[-_LAST_EVENTS:][::-1]


def _checkpoints(session: TrainingSession, reader: RunReader) -> list[dict[str, Any]]:
    known = sorted(
        [*session.checkpoints.values(), *session.checkpoints_beside], key=lambda each: each.checkpoint_step
    )
    return [
        {
            "step": each.checkpoint_step,
            "path": each.checkpoint_path,
            "num_bytes": each.num_bytes,
            "problem": problem_with(each, reader.folder),
        }
        for each in known
    ]

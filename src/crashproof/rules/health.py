"""Whether a run is healthy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.session import AttemptRecord, TrainingSession
from crashproof.records.states import HealthState, LossVerdict, RunStatus

__all__ = ["Health", "health_of", "last_update_time", "patience_seconds"]

_LEAST_PATIENCE_SECONDS = 120.0
_MEDIANS = 20.0
"""So many usual intervals without an update are no slow step any more."""
_LONGEST = 3.0
"""So many times the longest recent interval: a save or an evaluation is among those."""
_FIRST_UPDATE_SECONDS = 900.0
"""What loading, compiling and a first step may take."""
_CLOCK_SECONDS = 60.0
"""Two clocks that differ by less are called right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What to call a run, and why."""

    state: HealthState
    reason: str
    seconds_since_update: float | None
    patience_seconds: float | None
    """So long without an update is a stall; None where nobody writes the run."""


def health_of(
    session: TrainingSession, attempt: AttemptRecord | None, *, status: RunStatus, verdict: LossVerdict, now: float
) -> Health:
    """Judge a run by its records.

    Args:
        session: What is known of it.
        attempt: Its newest one for training.
        status: How it stands by its records and its lock: `running` only where its process is alive.
        verdict: That of its loss trend.
        now: Seconds since 1970.
    """
    seen = last_update_time(session, attempt)
    since = None if seen is None else now - seen
    if status != RunStatus.RUNNING or attempt is None:
        state = HealthState.COMPLETE if status == RunStatus.COMPLETED else HealthState(status)
        return Health(
            state=state,
            reason=_why_ended(state, attempt, session),
            seconds_since_update=since,
            patience_seconds=None,
        )
    own = [line for line in session.metrics_history if line.attempt == attempt.attempt]
    has_begun = bool(own) or (session.is_job and attempt.last_seen > (attempt.start or 0.0))
    patience = patience_seconds(own)
    waited = now - max(attempt.start or 0.0, attempt.last_seen)
    if since is not None and since < -_CLOCK_SECONDS:
        state, reason = _by_the_loss(verdict) or (HealthState.RUNNING, "")
        clock = f"the newest update is dated {-since:.0f} s in the future: a clock is wrong"
        reason = f"{reason}; {clock}" if reason else clock
    elif waited > patience:
        waiting = f"no update for {waited:.0f} s" if has_begun else f"no update in the {waited:.0f} s since the start"
        state, reason = HealthState.STALLED, f"{waiting}; at most {patience:.0f} s is usual"
    else:
        state, reason = _by_the_loss(verdict) or (
            (HealthState.RUNNING, "") if has_begun else (HealthState.STARTING, "no update yet")
        )
    return Health(state=state, reason=reason, seconds_since_update=since, patience_seconds=patience)


def last_update_time(session: TrainingSession, attempt: AttemptRecord | None) -> float | None:
    """When the newest update was written, in seconds since 1970; of a job, its newest sign of life."""
    if session.is_job:
        return attempt.last_seen if attempt is not None else None
    return session.metrics_history[-1].timestamp if session.metrics_history else None


def patience_seconds(updates: Sequence[MetricsSnapshot]) -> float:
    """How long the next update of an attempt may take before that is called a stall.

    Where a clock has gone backwards between two updates, their interval says nothing and is left out.
    """
    intervals = [
        later.timestamp - earlier.timestamp
        for earlier, later in pairwise(updates)
        if later.timestamp >= earlier.timestamp
    ]
    if not intervals:
        return _FIRST_UPDATE_SECONDS
    return max(_LEAST_PATIENCE_SECONDS, _MEDIANS * median(intervals), _LONGEST * max(intervals))


def _by_the_loss(verdict: LossVerdict) -> tuple[HealthState, str] | None:
    if verdict == LossVerdict.DIVERGING:
        return HealthState.DIVERGING, "the loss rises by more than its noise"
    if verdict == LossVerdict.NON_FINITE:
        return HealthState.NON_FINITE, "the loss is not finite"
    return None


def _why_ended(state: HealthState, attempt: AttemptRecord | None, session: TrainingSession) -> str:
    if state in (HealthState.RAISED, HealthState.ENDED_EARLY) and attempt is not None and attempt.error:
        return attempt.error
    return {
        HealthState.CRASHED: "the process exited without recording a shutdown",
        HealthState.COMPLETE: "all requests completed" if session.is_job else "all steps are done",
        HealthState.ENDED_EARLY: "closed before the last " + ("request" if session.is_job else "step"),
        HealthState.PREEMPTED: "asked to stop, and saved",
        HealthState.NOT_STARTED: "no process has started it yet",
        HealthState.ADOPTED: "checkpoints of other code were adopted",
    }.get(state, "")

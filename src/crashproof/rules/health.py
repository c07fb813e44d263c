"""The health of a run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from msgspec import Struct

from crashproof.medians import median
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.session import AttemptRecord, TrainingSession
from crashproof.records.states import HealthState, LossVerdict, RunStatus
from crashproof.rules.saves.failures import are_failing, words_on_session

__all__ = ["Health", "health_of", "last_update_time", "patience_seconds"]

_LEAST_PATIENCE_SECONDS = 120.0
_MEDIANS = 20.0
"""After this many median intervals without an update, it is more than a slow step."""
_LONGEST = 3.0
"""Likewise of the longest recent interval, which may include a save or an evaluation."""
_FIRST_UPDATE_SECONDS = 900.0
"""Loading, compiling and the first step may take this long."""
_CLOCK_SECONDS = 60.0
"""Clocks of two machines may differ by this much."""


class Health(Struct, frozen=True, kw_only=True):
    """The state of a run, and the reason for it."""

    state: HealthState
    reason: str
    seconds_since_update: float | None
    patience_seconds: float | None
    """After this long without an update, a run is stalled; None if no process writes it."""


def health_of(
    session: TrainingSession,
    attempt: AttemptRecord | None,
    *,
    status: RunStatus,
    verdict: LossVerdict,
    now: float,
    evidence: str = "rises by more than its noise",
) -> Health:
    """Judge a run by its records.

    Args:
        session: The state of its session.
        attempt: Its newest attempt for training.
        status: By its records and its lock: `running` only if its process is alive.
        verdict: The verdict on its loss.
        now: Seconds since 1970.
        evidence: What the verdict rests on, to be read after "the loss".
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
        state, reason = _judge(session, verdict, evidence) or (HealthState.RUNNING, "")
        clock = f"the newest update is dated {-since:.0f} s in the future: a clock is wrong"
        reason = f"{reason}; {clock}" if reason else clock
    elif waited > patience:
        waiting = f"no update for {waited:.0f} s" if has_begun else f"no update in the {waited:.0f} s since the start"
        state, reason = HealthState.STALLED, f"{waiting}; at most {patience:.0f} s is usual"
    else:
        state, reason = _judge(session, verdict, evidence) or (
            (HealthState.RUNNING, "") if has_begun else (HealthState.STARTING, "no update yet")
        )
    return Health(state=state, reason=reason, seconds_since_update=since, patience_seconds=patience)


def last_update_time(session: TrainingSession, attempt: AttemptRecord | None) -> float | None:
    """When the newest update was written, in seconds since 1970; for a job, when its newest record was written."""
    if session.is_job:
        return attempt.last_seen if attempt is not None else None
    return session.metrics_history[-1].timestamp if session.metrics_history else None


def patience_seconds(updates: Sequence[MetricsSnapshot]) -> float:
    """How long the next update of an attempt may take before the run counts as stalled.

    An interval during which the clock was set back is ignored.
    """
    intervals = [
        later.timestamp - earlier.timestamp
        for earlier, later in pairwise(updates)
        if later.timestamp >= earlier.timestamp
    ]
    if not intervals:
        return _FIRST_UPDATE_SECONDS
    return max(_LEAST_PATIENCE_SECONDS, _MEDIANS * median(intervals), _LONGEST * max(intervals))


def _judge(session: TrainingSession, verdict: LossVerdict, evidence: str) -> tuple[HealthState, str] | None:
    """What is wrong with a run that moves; None if nothing is."""
    if verdict == LossVerdict.DIVERGING:
        return HealthState.DIVERGING, f"the loss {evidence}"
    if verdict == LossVerdict.NON_FINITE:
        return HealthState.NON_FINITE, "the loss is not finite"
    if are_failing(session.failed_saves):
        return HealthState.SAVES_FAILING, words_on_session(session)
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

"""When to raise and clear alerts.

A condition (a stall, a full disk) is raised when it begins and cleared when it is over, late enough that one which
comes and goes is reported once. A happening (a crash, the end of the run) is reported once per attempt. Both are
recorded in the session, so a restart neither repeats an alert nor forgets one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal

from msgspec import Struct, field

from crashproof.formatting import as_bytes, as_dollars_text
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.session import AttemptRecord, TrainingSession
from crashproof.records.states import AlertKind, AttemptState, HealthState, LossVerdict
from crashproof.rules.bad_steps.finding import record_in_words
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.rules.saves.failures import are_failing, words_on_session

__all__ = [
    "ALERT_KINDS",
    "CONDITIONS",
    "HAPPENINGS",
    "Changes",
    "Observed",
    "changes_of",
    "end_of",
    "is_good_news",
    "least_free_bytes",
    "untold_crashes",
]

HAPPENINGS = (
    AlertKind.JOURNAL_ALTERED,
    AlertKind.CRASHED,
    AlertKind.RAISED,
    AlertKind.PREEMPTED,
    AlertKind.RESTARTED,
    AlertKind.GAVE_UP,
    AlertKind.COMPLETE,
)
CONDITIONS = tuple(kind for kind in AlertKind if kind not in HAPPENINGS)
ALERT_KINDS = tuple(AlertKind)
_KIND_OF_STATE = {
    AttemptState.CRASHED: AlertKind.CRASHED,
    AttemptState.RAISED: AlertKind.RAISED,
    AttemptState.PREEMPTED: AlertKind.PREEMPTED,
}

_FINE_SECONDS = 600.0
_FINE_UPDATES = 20
"""An alert about the loss is over once the loss has been fine for this long and this many updates."""
_WELL_ABOVE = 1.5
"""An alert about the disk is over once this many times the limit is free."""
_SHARES = {AlertKind.BUDGET_80: Decimal("0.8"), AlertKind.BUDGET_100: Decimal(1)}
_LEAST_FREE_BYTES = 1 << 30
_CHECKPOINTS_AHEAD = 2


class Observed(Struct, frozen=True, kw_only=True):
    """The observations of a live run at one moment."""

    now: float
    """Seconds since 1970."""
    health: HealthState
    health_reason: str
    """Both as in the summary."""
    verdict: LossVerdict
    """The verdict on the loss."""
    evidence: str = "rises by more than its noise"
    """What it rests on, to be read after "the loss"."""
    looked_at: float = math.inf
    """When the previous check was; a non-finite loss since then counts even if it has recovered."""
    unwritten: str = ""
    """What of the run's records has not reached its disk for a while, and why; empty if all has."""
    free_bytes: int | None = None
    """On the run's disk; None if unknown."""
    least_free_bytes: int = _LEAST_FREE_BYTES
    """The disk is low below this limit."""
    spent: Decimal = Decimal(0)
    """US dollars paid to teachers by all sessions of the folder, including requests in doubt."""
    budget: Decimal | None = None
    """None if none is set."""


class Changes(Struct, frozen=True, kw_only=True):
    """The alerts to raise and to clear after one check."""

    raised: dict[AlertKind, str] = field(default_factory=dict)
    """The message by kind."""
    cleared: list[AlertKind] = field(default_factory=list)
    fine_since: dict[str, float] = field(default_factory=dict)
    """When each active kind became fine again; an input of the next check."""


class _Finding(Struct, frozen=True, kw_only=True):
    """The finding for one kind at one moment; neither bad nor fine if that is unknown."""

    is_bad: bool = False
    is_fine: bool = False
    message: str = ""
    has_to_last: bool = False
    """Whether it must stay fine for a while before its alert is over."""


def changes_of(session: TrainingSession, observed: Observed, fine_since: Mapping[str, float]) -> Changes:
    """Compare what is observed with the alerts that are active in the session.

    `fine_since` is that of the previous check; after a restart it is empty, and an alert stays active longer.
    """
    changes = Changes()
    for kind, finding in _findings(session, observed).items():
        if kind not in session.alerts_active:
            if finding.is_bad:
                changes.raised[kind] = finding.message
        elif finding.is_fine:
            since = min(fine_since.get(kind, observed.now), observed.now)
            if not finding.has_to_last or _has_lasted(session, since, observed.now):
                changes.cleared.append(kind)
            else:
                changes.fine_since[kind] = since
    return changes


def end_of(session: TrainingSession, attempt: AttemptRecord) -> tuple[AlertKind, str] | None:
    """The kind and the message of an attempt's end; None if there is nothing to report, or it was reported already.

    An attempt without a recorded end counts as crashed, so call this only once its process is gone.
    """
    kind = _kind_of_end(session, attempt)
    if kind is None or kind in attempt.alerted:
        return None
    if kind == AlertKind.COMPLETE:
        done = session.steps_completed
        # Starting a complete run again is no news.
        if any((each.kind, each.step) == (kind, done) for each in session.alerts):
            return None
        return kind, f"all {session.steps_done:,} {'requests completed' if session.is_job else 'steps are done'}"
    if kind == AlertKind.PREEMPTED:
        return kind, f"asked to stop, and saved; {_how_far(session)}"
    if kind == AlertKind.RAISED:
        return kind, f"{attempt.error or 'an error'}; {_how_far(session)}"
    last = "no step reported" if attempt.last_step is None else f"last step {attempt.last_step:,}"
    process = f" (process {attempt.pid} on {attempt.host})" if attempt.pid else ""
    return kind, f"attempt {attempt.attempt}{process} exited without recording a shutdown; {last}"


def untold_crashes(session: TrainingSession) -> list[tuple[AttemptRecord, str]]:
    """Crashed attempts that no alert has reported yet, each with the message."""
    crashed = [each for each in session.attempts if each.how == AttemptState.CRASHED]
    return [(attempt, end[1]) for attempt in crashed if (end := end_of(session, attempt)) is not None]


def least_free_bytes(session: TrainingSession) -> int:
    """The default limit of a low disk: 1 GiB, or twice the size of the newest checkpoint if that is more."""
    newest = CheckpointCatalog(session).newest()
    return max(_LEAST_FREE_BYTES, _CHECKPOINTS_AHEAD * ((newest.num_bytes or 0) if newest else 0))


def is_good_news(kind: str) -> bool:
    """Whether it needs no action."""
    return kind in (AlertKind.PREEMPTED, AlertKind.COMPLETE)


def _findings(session: TrainingSession, observed: Observed) -> dict[AlertKind, _Finding]:
    history, verdict = session.metrics_history, observed.verdict
    nonfinite = [line for line in history if not math.isfinite(line.loss) and not line.without_loss]
    is_new = bool(nonfinite) and nonfinite[-1].timestamp >= observed.looked_at
    return {
        AlertKind.STALLED: _Finding(
            is_bad=observed.health == HealthState.STALLED,
            # It cannot flap: each stall lengthens the interval that counts as usual from then on.
            is_fine=observed.health != HealthState.STALLED,
            message=observed.health_reason,
        ),
        AlertKind.DIVERGING: _Finding(
            is_bad=verdict == LossVerdict.DIVERGING,
            # A non-finite loss has no slope.
            is_fine=verdict not in (LossVerdict.DIVERGING, LossVerdict.NON_FINITE, LossVerdict.UNKNOWN),
            message=f"the loss {observed.evidence}{_place(history)}",
            has_to_last=True,
        ),
        AlertKind.NON_FINITE: _Finding(
            is_bad=verdict == LossVerdict.NON_FINITE or is_new,
            is_fine=verdict not in (LossVerdict.NON_FINITE, LossVerdict.UNKNOWN) and not is_new,
            message=f"the loss is not finite{_place(nonfinite)}",
            has_to_last=True,
        ),
        AlertKind.BAD_STEP: _bad_step_finding(session, observed),
        AlertKind.SAVES_FAILING: _Finding(
            is_bad=are_failing(session.failed_saves),
            is_fine=not session.failed_saves.in_a_row,
            message=words_on_session(session),
        ),
        AlertKind.RECORDS_FAILING: _Finding(
            is_bad=bool(observed.unwritten), is_fine=not observed.unwritten, message=observed.unwritten
        ),
        AlertKind.DISK_LOW: _disk_finding(observed),
        **{kind: _budget_finding(observed, share) for kind, share in _SHARES.items()},
    }


def _bad_step_finding(session: TrainingSession, observed: Observed) -> _Finding:
    newest = session.bad_steps[-1] if session.bad_steps else None
    is_new = newest is not None and newest.timestamp >= observed.looked_at
    return _Finding(
        is_bad=is_new,
        is_fine=not is_new,
        message="" if newest is None else record_in_words(newest),
        has_to_last=True,
    )


def _place(lines: list[MetricsSnapshot]) -> str:
    return f" (step {lines[-1].step:,}, loss {lines[-1].loss:.6g})" if lines else ""


def _disk_finding(observed: Observed) -> _Finding:
    free, limit = observed.free_bytes, observed.least_free_bytes
    if free is None:
        return _Finding()
    return _Finding(
        is_bad=free < limit,
        is_fine=free >= _WELL_ABOVE * limit,
        message=f"{as_bytes(free)} free on the run's disk, below the limit of {as_bytes(limit)}",
    )


def _budget_finding(observed: Observed, share: Decimal) -> _Finding:
    if observed.budget is None:
        return _Finding()
    is_reached = observed.spent >= share * observed.budget
    return _Finding(
        is_bad=is_reached,
        # Only a larger budget makes this true again.
        is_fine=not is_reached,
        message=f"{as_dollars_text(observed.spent)} of {as_dollars_text(observed.budget)} spent",
    )


def _has_lasted(session: TrainingSession, since: float, now: float) -> bool:
    if now - since < _FINE_SECONDS:
        return False
    newest = session.metrics_history[-_FINE_UPDATES:]
    return len(newest) == _FINE_UPDATES and newest[0].timestamp >= since


def _kind_of_end(session: TrainingSession, attempt: AttemptRecord) -> AlertKind | None:
    if attempt.end is None:
        return AlertKind.CRASHED
    if attempt.how == AttemptState.COMPLETED:
        return AlertKind.COMPLETE if session.is_finished else None
    return _KIND_OF_STATE.get(attempt.how)


def _how_far(session: TrainingSession) -> str:
    done = "requests completed" if session.is_job else "steps are done"
    return f"{session.steps_completed:,} of {session.total_steps_target:,} {done}"

from __future__ import annotations

from typing import Any

from crashproof.records.events import AttemptStarted, ProcessEnded
from crashproof.records.session import TrainingSession
from crashproof.records.supervision import Action, EndCause
from crashproof.rules.session import apply_event
from crashproof.rules.summary import goodput_seconds


def session() -> TrainingSession:
    return TrainingSession(session_id="training_1", start_time=0.0, config={}, config_hash="", total_steps_target=9)


def started(attempt: int, at: float) -> AttemptStarted:
    return AttemptStarted(timestamp=at, attempt=attempt, host="a", pid=1, git_commit=None, wall_clock_hours=0.0)


def ended(**given: Any) -> ProcessEnded:
    usual = {
        "timestamp": 100.0,
        "attempt": 1,
        "cause": EndCause.HANG,
        "details": "no progress",
        "started_at": 1.0,
        "exit_code": None,
        "signal": "SIGKILL",
        "step": 5,
        "opened_run": True,
        "action": Action.RESTART,
        "reason": "restart 1 of 5",
        "hung_seconds": 60.0,
        "lost_seconds": 90.0,
    }
    return ProcessEnded(**(usual | given))


def test_ends_are_counted_by_cause():
    run = session()
    apply_event(run, ended())
    apply_event(run, ended(cause=EndCause.SIGNAL, hung_seconds=0.0, opened_run=False))
    apply_event(
        run, ended(cause=EndCause.PREEMPTION, action=Action.STOP, hung_seconds=0.0, notices=2, notices_saved=1)
    )

    found = run.supervision
    assert {"hang": 1, "signal": 1, "preemption": 1} == found.ends
    assert (2, 60.0, 180.0) == (found.restarts, found.hung_seconds, found.lost_seconds)
    assert (2, 1) == (found.notices, found.notices_saved)
    assert found.newest is not None
    assert EndCause.PREEMPTION == found.newest.cause


def test_a_hang_is_no_downtime():
    run = session()
    for event in (started(1, 0.0), ended(timestamp=70.0), started(2, 100.0)):
        apply_event(run, event)

    seconds = goodput_seconds(run)
    assert (60.0, 40.0) == (seconds.hung, seconds.down)


def test_the_record_of_an_end_is_no_sign_of_life():
    run = session()
    apply_event(run, started(1, 0.0))
    apply_event(run, ended())

    assert 0.0 == run.attempts[0].last_seen

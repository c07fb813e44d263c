from __future__ import annotations

import pytest

from crashproof import MetricsSnapshot
from crashproof.records.events import SessionStarted
from crashproof.records.session import AttemptRecord, FailedSaves
from crashproof.records.states import SessionKind
from crashproof.rules.health import health_of, patience_seconds
from crashproof.rules.session import begin_session

NOW = 10_000.0


def update(timestamp: float, *, step: int = 1, attempt: int = 1) -> MetricsSnapshot:
    return MetricsSnapshot(
        attempt=attempt,
        step=step,
        timestamp=timestamp,
        wall_clock_hours=0.0,
        loss=1.0,
        loss_components={},
        learning_rate=0.1,
        samples_processed=1,
        tokens_processed=1,
    )


def session_with(*updates: MetricsSnapshot, job: bool = False):
    kind = SessionKind.GENERATION if job else SessionKind.TRAINING
    begun = {"timestamp": 0.0, "attempt": 1, "session_id": "training_a", "config_hash": "", "total_steps": 100}
    session = begin_session(SessionStarted(config={}, kind=kind, **begun))
    session.metrics_history = list(updates)
    return session


def judged(*updates: MetricsSnapshot, status: str = "running", verdict: str = "improving", start: float = 0.0):
    newest = max((each.timestamp for each in updates), default=0.0)
    attempt = AttemptRecord(attempt=1, start=start, last_seen=max(start, newest), error="ValueError: no")
    return health_of(session_with(*updates), attempt, status=status, verdict=verdict, now=NOW)


EVERY_10_S = [update(NOW - 1000 + 10 * step, step=step) for step in range(1, 90)]


@pytest.mark.parametrize(
    "verdict, expected",
    [
        ("improving", "running"),
        ("plateau", "running"),
        ("unstable", "running"),
        ("unknown", "running"),
        ("diverging", "diverging"),
        ("non_finite", "non_finite"),
    ],
)
def test_a_live_run_that_reports_is_as_well_as_its_loss(verdict, expected):
    recent = [update(NOW - 1000 + 10 * step, step=step) for step in range(1, 100)]

    assert expected == judged(*recent, verdict=verdict).state


@pytest.mark.parametrize(
    "in_a_row, verdict, expected",
    [
        (1, "improving", "running"),
        (2, "improving", "saves_failing"),
        (9, "unknown", "saves_failing"),
        # Both are alerts; what is wrong with the training comes first.
        (9, "diverging", "diverging"),
    ],
)
def test_a_run_that_cannot_save_is_not_well(in_a_row, verdict, expected):
    session = session_with(update(NOW - 1.0))
    session.failed_saves = FailedSaves(in_a_row=in_a_row, total=9, step=1, timestamp=NOW, error="read-only")
    attempt = AttemptRecord(attempt=1, start=NOW - 60.0, last_seen=NOW)

    health = health_of(session, attempt, status="running", verdict=verdict, now=NOW)

    assert expected == health.state
    assert ("read-only" in health.reason) is (expected == "saves_failing")


def test_silence_far_beyond_the_usual_pace_is_a_stall():
    silent_for = NOW - EVERY_10_S[-1].timestamp
    shorter = health_of(
        session_with(*EVERY_10_S),
        AttemptRecord(attempt=1, start=0.0, last_seen=EVERY_10_S[-1].timestamp),
        status="running",
        verdict="improving",
        now=EVERY_10_S[-1].timestamp + 199,
    )

    assert 110.0 == silent_for
    assert ("running", 200.0) == (shorter.state, shorter.patience_seconds)
    assert "stalled" == judged(*[update(each.timestamp - 100) for each in EVERY_10_S]).state


def test_a_stall_says_how_long_and_what_is_usual():
    health = judged(*[update(each.timestamp - 1000) for each in EVERY_10_S])

    assert "no update for 1110 s; at most 200 s is usual" == health.reason


def test_an_evaluation_among_the_updates_makes_patient():
    fast = [update(float(second)) for second in range(50)]
    with_evaluation = [*fast, *[update(600.0 + second) for second in range(50)]]

    assert (120.0, 3 * 551.0) == (patience_seconds(fast), patience_seconds(with_evaluation))


def test_before_its_first_update_a_run_starts_and_then_stalls():
    assert ("starting", "stalled") == (judged(start=NOW - 899).state, judged(start=NOW - 901).state)


def test_a_clock_that_went_backwards_is_said_and_is_no_stall():
    health = judged(update(NOW + 5000.0), update(NOW + 3600.0, step=2))

    assert "running" == health.state
    assert "the newest update is dated 3600 s in the future: a clock is wrong" == health.reason


def test_intervals_across_a_clock_that_went_backwards_say_nothing():
    assert 120.0 == patience_seconds([update(1000.0), update(1001.0), update(5.0), update(6.0)])


@pytest.mark.parametrize(
    "status, state, reason",
    [
        ("completed", "complete", "all steps are done"),
        ("crashed", "crashed", "the process exited without recording a shutdown"),
        ("raised", "raised", "ValueError: no"),
        ("preempted", "preempted", "asked to stop, and saved"),
        ("ended_early", "ended_early", "ValueError: no"),
        ("replaced", "replaced", ""),
    ],
)
def test_the_state_of_an_ended_run_is_how_it_ended(status, state, reason):
    health = judged(*EVERY_10_S, status=status, verdict="diverging")

    assert (state, reason, None) == (health.state, health.reason, health.patience_seconds)


def test_one_that_was_closed_early_without_an_error_says_that():
    attempt = AttemptRecord(attempt=1, start=0.0, last_seen=0.0)
    health = health_of(session_with(), attempt, status="ended_early", verdict="unknown", now=NOW)

    assert "closed before the last step" == health.reason


@pytest.mark.parametrize(
    "seen, state, reason",
    [
        (NOW - 1000, "starting", "no update yet"),
        (NOW - 899, "running", ""),
        (NOW + 70, "running", "the newest update is dated 70 s in the future: a clock is wrong"),
    ],
)
def test_a_job_lives_by_any_sign_of_life(seen, state, reason):
    session = session_with(job=True)
    attempt = AttemptRecord(attempt=1, start=NOW - 500 if state == "starting" else NOW - 5000, last_seen=seen)
    health = health_of(session, attempt, status="running", verdict="unknown", now=NOW)

    assert (state, reason) == (health.state, health.reason)


def test_a_job_that_hears_nothing_for_long_has_stalled():
    attempt = AttemptRecord(attempt=1, start=NOW - 5000, last_seen=NOW - 901)
    health = health_of(session_with(job=True), attempt, status="running", verdict="unknown", now=NOW)

    assert ("stalled", 901.0) == (health.state, health.seconds_since_update)
    assert health.reason.startswith("no update for 901 s")


@pytest.mark.parametrize(
    "status, reason",
    [("completed", "all requests completed"), ("ended_early", "closed before the last request")],
)
def test_a_job_that_ended_speaks_of_requests(status, reason):
    attempt = AttemptRecord(attempt=1, start=0.0, last_seen=0.0)

    assert reason == health_of(session_with(job=True), attempt, status=status, verdict="unknown", now=NOW).reason


def test_a_run_without_an_attempt_is_not_started():
    assert "not_started" == health_of(session_with(), None, status="not_started", verdict="unknown", now=NOW).state

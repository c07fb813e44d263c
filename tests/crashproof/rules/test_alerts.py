from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from crashproof.records.bad_steps import BadStepRecord, DataWindow
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.events import AlertCleared, AlertRaised
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.session import AttemptRecord, FailedSaves, RaisedAlert, TrainingSession
from crashproof.records.states import BadStepAction, BadStepCause, SessionKind
from crashproof.rules.alerts import (
    ALERT_KINDS,
    CONDITIONS,
    HAPPENINGS,
    Observed,
    changes_of,
    end_of,
    least_free_bytes,
    untold_crashes,
)
from crashproof.rules.session import apply_event

NOW = 10_000.0
GIB = 1 << 30


def session(**known: Any) -> TrainingSession:
    usual = {"config": {}, "total_steps_target": 100}
    return TrainingSession(session_id="training_1", start_time=0.0, config_hash="", **(usual | known))


def observed(**known: Any) -> Observed:
    usual = {"now": NOW, "health": "running", "health_reason": "", "verdict": "plateau"}
    return Observed(**(usual | known))


def updates(count: int, *, newest_at: float, seconds: float = 1.0) -> list[MetricsSnapshot]:
    return [
        MetricsSnapshot(
            step=number + 1,
            timestamp=newest_at - seconds * (count - 1 - number),
            wall_clock_hours=0.0,
            loss=2.0,
            loss_components={},
            learning_rate=0.1,
            samples_processed=1,
            tokens_processed=1,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize(
    "seen, expected",
    [
        pytest.param({}, [], id="a-run-that-is-well"),
        pytest.param({"health": "starting", "verdict": "unknown"}, [], id="one-that-starts"),
        pytest.param({"health": "stalled", "health_reason": "300 s"}, ["stalled"], id="stalled"),
        pytest.param({"verdict": "diverging"}, ["diverging"], id="diverging"),
        pytest.param({"verdict": "unstable"}, [], id="unstable"),
        pytest.param({"verdict": "non_finite"}, ["non_finite"], id="not-finite"),
        pytest.param({"verdict": "diverging", "health": "stalled"}, ["stalled", "diverging"], id="two-at-once"),
        pytest.param({"unwritten": "3 records wait in memory"}, ["records_failing"], id="records-wait"),
        pytest.param({"free_bytes": GIB - 1}, ["disk_low"], id="disk-low"),
        pytest.param({"free_bytes": GIB}, [], id="disk-at-the-limit"),
        pytest.param({"free_bytes": None}, [], id="disk-unknown"),
        pytest.param({"spent": Decimal("7.99"), "budget": Decimal(10)}, [], id="budget-below-80"),
        pytest.param({"spent": Decimal(8), "budget": Decimal(10)}, ["budget_80"], id="budget-at-80"),
        pytest.param({"spent": Decimal(10), "budget": Decimal(10)}, ["budget_80", "budget_100"], id="budget-spent"),
        pytest.param({"spent": Decimal(10), "budget": None}, [], id="no-budget"),
    ],
)
def test_what_begins_is_raised(seen: dict[str, Any], expected: list[str]) -> None:
    changes = changes_of(session(), observed(**seen), {})

    assert expected == list(changes.raised)
    assert [] == changes.cleared


def bad_step(at: float) -> BadStepRecord:
    return BadStepRecord(
        step=31,
        cause=BadStepCause.SPIKE,
        loss=9.0,
        usual=2.0,
        limit=3.0,
        num_losses=29,
        data=[DataWindow(240, 248)],
        action=BadStepAction.SKIPPED_DATA,
        attempt=1,
        timestamp=at,
    )


def test_a_bad_step_since_the_last_look_is_raised_and_cleared_once_the_loss_was_fine_for_a_while() -> None:
    known = session(bad_steps=[bad_step(NOW)], metrics_history=updates(100, newest_at=NOW))
    active = session(
        bad_steps=[bad_step(NOW - 1000)], metrics_history=updates(100, newest_at=NOW), alerts_active={"bad_step": 1.0}
    )

    raised = changes_of(known, observed(looked_at=NOW - 2), {}).raised
    over = changes_of(active, observed(looked_at=NOW - 2), {"bad_step": NOW - 601})

    assert {
        "bad_step": "step 31 has a loss of 9; the 29 healthy losses before it are about 2, and up to 3 would have "
        "passed (samples 240 to 247 of the order); training went back to a checkpoint, and leaves these samples out"
    } == raised
    assert {} == changes_of(known, observed(looked_at=NOW + 2), {}).raised
    assert ["bad_step"] == over.cleared


@pytest.mark.parametrize(
    "kind, bad",
    [
        pytest.param("stalled", {"health": "stalled"}, id="stalled"),
        pytest.param("diverging", {"verdict": "diverging"}, id="diverging"),
        pytest.param("non_finite", {"verdict": "non_finite"}, id="not-finite"),
        pytest.param("disk_low", {"free_bytes": 1}, id="disk-low"),
        pytest.param("budget_80", {"spent": Decimal(9), "budget": Decimal(10)}, id="budget"),
    ],
)
def test_a_condition_that_lasts_is_raised_once(kind: str, bad: dict[str, Any]) -> None:
    active = session(alerts_active={kind: NOW - 5000.0}, metrics_history=updates(100, newest_at=NOW))

    changes = changes_of(active, observed(**bad), {kind: 0.0})

    assert ({}, [], {}) == (changes.raised, changes.cleared, changes.fine_since)


@pytest.mark.parametrize(
    "kind, fine",
    [
        pytest.param("stalled", {}, id="an-update-came"),
        pytest.param("disk_low", {"free_bytes": GIB * 3 // 2}, id="half-as-much-again-is-free"),
        pytest.param("budget_80", {"spent": Decimal(8), "budget": Decimal(20)}, id="the-budget-was-raised"),
    ],
)
def test_what_is_over_at_once_is_cleared_at_once(kind: str, fine: dict[str, Any]) -> None:
    assert [kind] == changes_of(session(alerts_active={kind: 1.0}), observed(**fine), {}).cleared


@pytest.mark.parametrize(
    "kind, between",
    [
        pytest.param("disk_low", {"free_bytes": GIB * 3 // 2 - 1}, id="a-little-above-the-limit"),
        pytest.param("disk_low", {"free_bytes": None}, id="nobody-can-say-what-is-free"),
        pytest.param("budget_100", {"budget": None}, id="this-attempt-knows-no-budget"),
        pytest.param("diverging", {"verdict": "unknown"}, id="too-few-losses-to-tell"),
        pytest.param("diverging", {"verdict": "non_finite"}, id="no-loss-to-tell-by"),
    ],
)
def test_what_cannot_be_called_over_stays(kind: str, between: dict[str, Any]) -> None:
    active = session(alerts_active={kind: 1.0}, metrics_history=updates(100, newest_at=NOW, seconds=60.0))

    changes = changes_of(active, observed(**between), {kind: 0.0})

    assert ([], {}) == (changes.cleared, changes.fine_since)


@pytest.mark.parametrize("kind", ["diverging", "non_finite"])
@pytest.mark.parametrize(
    "since, history, is_over",
    [
        pytest.param(None, updates(100, newest_at=NOW), False, id="fine-for-the-first-time"),
        pytest.param(NOW - 599.0, updates(600, newest_at=NOW), False, id="not-for-long-enough"),
        pytest.param(NOW - 600.0, updates(600, newest_at=NOW), True, id="long-enough"),
        pytest.param(NOW - 600.0, updates(20, newest_at=NOW, seconds=40.0), False, id="too-few-updates-since"),
        pytest.param(NOW - 800.0, updates(20, newest_at=NOW, seconds=40.0), True, id="enough-updates-since"),
        pytest.param(NOW - 600.0, updates(19, newest_at=NOW), False, id="a-short-history"),
        pytest.param(NOW + 500.0, updates(100, newest_at=NOW), False, id="a-clock-that-went-back"),
    ],
)
def test_a_loss_must_look_well_for_a_while(
    kind: str, since: float | None, history: list[MetricsSnapshot], is_over: bool
) -> None:
    active = session(alerts_active={kind: 1.0}, metrics_history=history)

    changes = changes_of(active, observed(), {} if since is None else {kind: since})

    assert ([kind] if is_over else []) == changes.cleared
    assert ({} if is_over else {kind: min(since or NOW, NOW)}) == changes.fine_since


@pytest.mark.parametrize(
    "in_a_row, active, expected",
    [
        pytest.param(0, False, ([], []), id="none"),
        pytest.param(1, False, ([], []), id="one"),
        pytest.param(2, False, (["saves_failing"], []), id="two"),
        pytest.param(3, True, ([], []), id="three-and-it-is-known"),
        pytest.param(1, True, ([], []), id="not-saved-yet"),
        pytest.param(0, True, ([], ["saves_failing"]), id="saved"),
    ],
)
def test_saves_that_keep_failing_are_an_alert_until_one_succeeds(
    in_a_row: int, active: bool, expected: tuple[list[str], list[str]]
) -> None:
    failed = FailedSaves(in_a_row=in_a_row, total=7, step=40, timestamp=1.0, error="No space left on device")
    run = session(
        failed_saves=failed,
        steps_completed=45,
        last_checkpoint_step=20,
        alerts_active={"saves_failing": 1.0} if active else {},
    )

    changes = changes_of(run, observed(), {})

    assert expected == (list(changes.raised), changes.cleared)
    said = "the newest at step 40: No space left on device; the newest checkpoint is 25 steps old"
    assert {f"{in_a_row} saves in a row have failed, {said}"} >= set(changes.raised.values())


def test_records_that_reach_the_disk_again_end_the_alert() -> None:
    active = session(alerts_active={"records_failing": 1.0})

    assert [] == changes_of(active, observed(unwritten="3 records wait in memory"), {}).cleared
    assert ["records_failing"] == changes_of(active, observed(), {}).cleared


def test_a_loss_that_was_non_finite_between_two_checks_is_reported() -> None:
    lines = updates(100, newest_at=NOW)
    lines[-3] = msgspec.structs.replace(lines[-3], loss=math.inf)
    run = session(metrics_history=lines)

    assert {"non_finite": "the loss is not finite (step 98, loss inf)"} == changes_of(
        run, observed(looked_at=NOW - 2.0), {}
    ).raised
    assert {} == changes_of(run, observed(looked_at=NOW - 1.0), {}).raised


def test_a_verdict_that_flaps_for_hours_is_reported_once() -> None:
    run, fine_since, raised = session(), {}, 0
    for minute in range(600):
        now = NOW + 60.0 * minute
        run.metrics_history = updates(30, newest_at=now)
        verdict = "diverging" if minute % 7 == 0 else "plateau"
        changes = changes_of(run, observed(now=now, verdict=verdict), fine_since)
        fine_since = changes.fine_since
        raised += len(changes.raised)
        run.alerts_active |= dict.fromkeys(changes.raised, now)
        for kind in changes.cleared:
            del run.alerts_active[kind]

    assert 1 == raised


# How an attempt ends.


def attempt(**known: Any) -> AttemptRecord:
    return AttemptRecord(**({"attempt": 1, "host": "box", "pid": 7, "start": 1.0, "last_step": 40} | known))


@pytest.mark.parametrize(
    "ended, done, expected",
    [
        pytest.param({}, 40, "crashed", id="without-a-word"),
        pytest.param({"how": "crashed"}, 40, "crashed", id="found-crashed-by-another"),
        pytest.param({"how": "completed", "end": 9.0}, 100, "complete", id="all-steps-are-done"),
        pytest.param({"how": "completed", "end": 9.0}, 99, None, id="ended-early"),
        pytest.param({"how": "preempted", "end": 9.0}, 40, "preempted", id="asked-to-stop"),
        pytest.param({"how": "raised", "end": 9.0, "error": "ValueError: no"}, 40, "raised", id="raised"),
        pytest.param({"how": "replaced", "end": 9.0}, 40, None, id="replaced"),
        pytest.param({"how": "adopted", "end": 9.0}, 40, None, id="adopted"),
    ],
)
def test_an_end_is_reported_once(ended: dict[str, Any], done: int, expected: str | None) -> None:
    one = attempt(**ended)
    run = session(attempts=[one], steps_completed=done)

    end = end_of(run, one)

    assert expected == (end and end[0])
    if expected is not None:
        one.alerted = (expected,)
    assert None is end_of(run, one)


def test_the_message_of_a_crash_names_the_process_and_its_last_step() -> None:
    assert (
        "crashed",
        "attempt 1 (process 7 on box) exited without recording a shutdown; last step 40",
    ) == end_of(session(), attempt())
    assert ("crashed", "attempt 2 exited without recording a shutdown; no step reported") == end_of(
        session(), AttemptRecord(attempt=2)
    )


def test_a_complete_run_that_is_started_again_is_no_news() -> None:
    raised = RaisedAlert(kind="complete", message="", timestamp=1.0, attempt=1, step=100)
    second = attempt(attempt=2, how="completed", end=9.0)

    assert None is end_of(session(attempts=[second], steps_completed=100, alerts=[raised]), second)
    longer = session(attempts=[second], steps_completed=200, total_steps_target=200, alerts=[raised])
    assert ("complete", "all 200 steps are done") == end_of(longer, second)


def test_the_end_of_a_job_is_reported_in_requests() -> None:
    done = attempt(end=NOW, how="completed")
    job = session(kind=SessionKind.GENERATION, attempts=[done], steps_completed=100)
    stopped = attempt(end=NOW, how="preempted")

    assert ("complete", "all 100 requests completed") == end_of(job, done)
    assert ("preempted", "asked to stop, and saved; 100 of 100 requests completed") == end_of(job, stopped)


def test_only_unreported_crashes_are_reported_at_a_start() -> None:
    run = session(
        attempts=[
            attempt(attempt=1, how="crashed", alerted=("crashed",)),
            attempt(attempt=2, how="crashed"),
            attempt(attempt=3, how="preempted", end=9.0),
            attempt(attempt=4),
        ]
    )

    assert [2] == [each.attempt for each, _ in untold_crashes(run)]


@pytest.mark.parametrize(
    "num_bytes, expected",
    [
        pytest.param(None, GIB, id="of-unknown-size"),
        pytest.param(1000, GIB, id="small"),
        pytest.param(GIB, 2 * GIB, id="large"),
    ],
)
def test_a_disk_is_low_when_two_checkpoints_would_not_fit(num_bytes: int | None, expected: int) -> None:
    newest = CheckpointMetadata(
        checkpoint_step=7,
        checkpoint_path="checkpoint_7.pt",
        created_at=1.0,
        metrics=None,
        dataset_position=7,
        recovery_tags=[],
        attempt=1,
        num_bytes=num_bytes,
    )

    assert expected == least_free_bytes(session(checkpoints={7: newest}, last_checkpoint_step=7))
    assert GIB == least_free_bytes(session())


# What a session keeps of it.


def raised(kind: str, *, timestamp: float = 50.0, about: int = 1) -> AlertRaised:
    return AlertRaised(timestamp=timestamp, attempt=2, kind=kind, message="m", about_attempt=about, step=7)


def test_every_kind_is_a_condition_or_a_happening() -> None:
    assert ALERT_KINDS == CONDITIONS + HAPPENINGS
    assert len(ALERT_KINDS) == len(set(ALERT_KINDS))


def test_a_condition_is_active_until_it_is_cleared() -> None:
    run = session()
    apply_event(run, raised("stalled"))
    active = dict(run.alerts_active)
    apply_event(run, AlertCleared(timestamp=60.0, attempt=2, kind="stalled"))

    assert ({"stalled": 50.0}, {}) == (active, run.alerts_active)
    assert [("stalled", 50.0, 1, 7)] == [(each.kind, each.timestamp, each.attempt, each.step) for each in run.alerts]


def test_a_happening_is_kept_with_its_attempt_and_is_not_active() -> None:
    run = session(attempts=[attempt(how="crashed")])
    apply_event(run, raised("crashed"))

    assert ({}, ("crashed",)) == (run.alerts_active, run.attempts[0].alerted)


def test_an_alert_is_no_sign_of_life() -> None:
    run = session(attempts=[attempt(last_seen=9.0), attempt(attempt=2, last_seen=9.0)])
    for kind in ALERT_KINDS:
        apply_event(run, raised(kind, timestamp=5000.0))
        apply_event(run, AlertCleared(timestamp=5000.0, attempt=2, kind=kind))

    assert [9.0, 9.0] == [each.last_seen for each in run.attempts]


def test_the_newest_hundred_are_kept() -> None:
    run = session()
    for number in range(130):
        apply_event(run, raised("stalled", timestamp=float(number)))

    assert [float(number) for number in range(30, 130)] == [each.timestamp for each in run.alerts]

from __future__ import annotations

import msgspec
import pytest

from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.progress import ProgressSummary
from crashproof.records.session import AttemptRecord, Evaluation, PacePoint, TrainingSession
from crashproof.rules.summary import goodput_seconds, progress_summary

PROMISED = {
    "session_id",
    "progress_pct",
    "steps_completed",
    "total_steps_target",
    "samples_processed",
    "tokens_processed",
    "elapsed_wall_clock_hours",
    "estimated_remaining_hours",
    "total_pause_duration_hours",
    "api_responses_saved",
    "connection_failures",
    "connection_retries",
    "loss_trend",
    "last_checkpoint_step",
    "checkpoints_count",
}


def session(**known) -> TrainingSession:
    return TrainingSession(
        session_id="training_1", start_time=0.0, config={}, config_hash="", **({"total_steps_target": 100} | known)
    )


def summary_of(**known) -> ProgressSummary:
    return progress_summary(session(**known), now=1000.0, wall_clock_hours=2.0)


def test_every_promised_field_is_there_from_the_first_moment():
    summary = summary_of()

    assert set() == PROMISED - msgspec.to_builtins(summary).keys()
    assert (0.0, 0, 100, 2.0, None) == tuple(
        getattr(summary, name)
        for name in (
            "progress_pct",
            "steps_completed",
            "total_steps_target",
            "elapsed_wall_clock_hours",
            "estimated_remaining_hours",
        )
    )


def test_the_fields_once_everything_is_known():
    newest = MetricsSnapshot(
        step=50,
        timestamp=990.0,
        wall_clock_hours=1.9,
        loss=1.5,
        loss_components={"kd": 1.5},
        learning_rate=0.1,
        samples_processed=400,
        tokens_processed=800,
        throughput_samples_per_sec=4.0,
        throughput_tokens_per_sec=8.0,
    )
    known = summary_of(
        steps_completed=50,
        metrics_history=[newest],
        attempts=[AttemptRecord(attempt=1, host="box", pid=7, start=0.0)],
        pace=[PacePoint(0.0, 0), PacePoint(3600.0, 50)],
        total_pause_duration=1800.0,
    )

    expected = {
        "progress_pct": 50.0,
        "estimated_remaining_hours": 1.0,
        "estimated_finish_time": 4600.0,
        "throughput_samples_per_sec": 4.0,
        "throughput_tokens_per_sec": 8.0,
        "learning_rate": 0.1,
        "loss_components": {"kd": 1.5},
        "last_update_time": 990.0,
        "total_pause_duration_hours": 0.5,
        "attempt": 1,
        "attempt_host": "box",
        "attempt_pid": 7,
    }
    assert expected == {name: getattr(known, name) for name in expected}
    assert 1.5 == known.loss_trend.current_loss
    assert known.estimated_remaining_hours_low <= 1.0 <= known.estimated_remaining_hours_high


def test_a_summary_is_plain_json():
    summary = summary_of()

    assert summary == msgspec.json.decode(msgspec.json.encode(summary), type=ProgressSummary)


@pytest.mark.parametrize(
    "done, target, expected",
    [
        pytest.param(0, 10, 0.0, id="not-begun"),
        pytest.param(5, 10, 50.0, id="half"),
        pytest.param(10, 10, 100.0, id="done"),
        pytest.param(15, 10, 100.0, id="beyond-a-target-made-shorter"),
    ],
)
def test_progress_is_the_share_of_steps_done(done, target, expected):
    summary = summary_of(steps_completed=done, total_steps_target=target)

    assert expected == summary.progress_pct


def test_a_finished_run_has_no_time_left():
    summary = summary_of(steps_completed=100)

    assert (0.0, 1000.0) == (summary.estimated_remaining_hours, summary.estimated_finish_time)


@pytest.mark.parametrize(
    "attempts, done, expected",
    [
        pytest.param([], 0, "not_started", id="no-attempt"),
        pytest.param(["running"], 5, "running", id="running"),
        pytest.param(["crashed", "running"], 5, "running", id="running-again"),
        pytest.param(["completed"], 100, "completed", id="completed"),
        pytest.param(["completed"], 99, "ended_early", id="closed-before-its-target"),
        pytest.param(["preempted"], 5, "preempted", id="preempted"),
        pytest.param(["raised"], 100, "raised", id="raised-after-the-last-step"),
    ],
)
def test_the_status_is_that_of_the_newest_attempt(attempts, done, expected):
    records = [AttemptRecord(attempt=number, how=how) for number, how in enumerate(attempts, start=1)]

    assert expected == summary_of(attempts=records, steps_completed=done).status


def test_a_run_that_did_nothing_has_no_goodput():
    assert 0.0 == goodput_seconds(session()).goodput_fraction


@pytest.mark.parametrize(
    "first, second, expected",
    [
        pytest.param({"end": 100.0}, {"start": 400.0}, 300.0, id="from-its-end-to-the-next-start"),
        pytest.param({"last_seen": 90.0}, {"start": 400.0}, 310.0, id="from-the-last-sign-of-a-crashed-one"),
        pytest.param({"end": 100.0}, {"start": None}, 0.0, id="a-start-that-was-lost"),
        pytest.param({"end": 500.0}, {"start": 400.0}, 0.0, id="a-wall-clock-set-back"),
    ],
)
def test_downtime_lies_between_attempts(first, second, expected):
    attempts = [AttemptRecord(attempt=1, **first), AttemptRecord(attempt=2, **second)]

    assert expected == goodput_seconds(session(attempts=attempts)).down


DAY = 86400.0
BOOT = {"boot_id": "b", "boot_seconds_at_start": 50.0, "hours_at_start": 1.0, "wall_clock_hours": 2.0}
"""An attempt that started at 1,000 and trained for an hour."""


@pytest.mark.parametrize(
    "first, second, expected",
    [
        pytest.param(
            {"end": 4600.0, "boot_seconds_at_end": 3650.0},
            {"start": 4660.0 + DAY, "boot_seconds_at_start": 3710.0},
            60.0,
            id="set-forward-between-them",
        ),
        pytest.param(
            {"end": 4600.0 - DAY, "boot_seconds_at_end": 3650.0},
            {"start": 4660.0, "boot_seconds_at_start": 3710.0},
            60.0,
            id="set-back-and-corrected",
        ),
        pytest.param(
            {"last_seen": 4600.0 + DAY},
            {"start": 4660.0, "boot_seconds_at_start": 3710.0},
            60.0,
            id="killed-after-it-was-set-forward",
        ),
        pytest.param(
            {"last_seen": 4600.0 - DAY},
            {"start": 4660.0 - DAY, "boot_seconds_at_start": 3710.0},
            60.0,
            id="killed-after-it-was-set-back",
        ),
        pytest.param(
            {"last_seen": 5200.0, "paused_seconds": 300.0},
            {"start": 5260.0, "boot_seconds_at_start": 4310.0},
            60.0,
            id="killed-in-an-evaluation-after-a-pause",
        ),
        pytest.param(
            {"last_seen": 4600.0 + DAY, "paused_seconds": 300.0},
            {"start": 4960.0, "boot_seconds_at_start": 4010.0},
            60.0,
            id="set-forward-and-paused",
        ),
        pytest.param(
            {"end": 4600.0 - DAY},
            {"start": 4660.0, "boot_id": "other", "boot_seconds_at_start": 9.0},
            60.0,
            id="another-boot-and-corrected",
        ),
        pytest.param(
            {"end": 4600.0 + DAY},
            {"start": 4660.0, "boot_id": "other", "boot_seconds_at_start": 9.0},
            0.0,
            id="another-boot-and-never-negative",
        ),
        pytest.param(
            {"end": 4600.0}, {"start": 4660.0, "boot_seconds_at_start": 9.0}, 60.0, id="a-counter-that-went-back"
        ),
        pytest.param({"end": 4600.0}, {"start": 4660.0, "boot_seconds_at_start": None}, 60.0, id="nothing-known"),
        pytest.param(
            {"last_seen": 900.0, "hours_at_start": None}, {"start": 1060.0}, 10.0, id="an-unknown-beginning"
        ),
    ],
)
def test_a_wall_clock_that_was_set_makes_no_downtime(first, second, expected):
    earlier = AttemptRecord(attempt=1, **({"start": 1000.0, "last_seen": 4600.0} | BOOT | first))
    later = AttemptRecord(attempt=2, **({"boot_id": "b", "boot_seconds_at_start": 60.0} | second))

    assert expected == goodput_seconds(session(attempts=[earlier, later])).down


def test_the_newest_evaluation_is_shown():
    measured = [
        Evaluation(step=step, attempt=1, timestamp=0.0, results={"perplexity": 10.0 - step}) for step in (2, 4)
    ]

    summary = summary_of(evaluations=measured)

    assert (4, {"perplexity": 6.0}) == (summary.evaluation_step, summary.evaluation)


def attempt(number: int, how: str, start: float, end: float) -> AttemptRecord:
    return AttemptRecord(attempt=number, how=how, start=start, end=end, last_seen=end)


@pytest.mark.parametrize(
    ("attempts", "status", "down"),
    [
        pytest.param([attempt(1, "adopted", 0.0, 1.0)], "adopted", 0.0, id="alone"),
        pytest.param(
            [attempt(1, "adopted", 0.0, 1.0), attempt(2, "running", 500.0, 600.0)],
            "running",
            0.0,
            id="before training",
        ),
        pytest.param(
            [attempt(1, "raised", 0.0, 100.0), attempt(2, "adopted", 150.0, 151.0)],
            "raised",
            0.0,
            id="after training",
        ),
        pytest.param(
            [
                attempt(1, "raised", 0.0, 100.0),
                attempt(2, "adopted", 150.0, 151.0),
                attempt(3, "raised", 300.0, 400.0),
            ],
            "raised",
            200.0,
            id="in between",
        ),
    ],
)
def test_an_attempt_that_only_adopted_checkpoints_says_nothing_of_the_training(attempts, status, down):
    known = session(attempts=attempts)

    assert (status, down) == (
        progress_summary(known, now=1000.0, wall_clock_hours=0.0).status,
        goodput_seconds(known).down,
    )

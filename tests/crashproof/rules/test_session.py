from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashproof.records.checkpoints import CheckpointMetadata, RefusedCheckpoint, RemovedCheckpoint
from crashproof.records.events import (
    AnswersRecovered,
    AttemptEnded,
    AttemptStarted,
    CheckpointFailed,
    CheckpointHashed,
    CheckpointRecorded,
    CheckpointRemoved,
    CheckpointsDeleted,
    CheckpointSetAside,
    ConfigContinued,
    ConnectionFailed,
    DamageFound,
    EvaluationRecorded,
    Event,
    JobAdvanced,
    Paused,
    RankTimesMeasured,
    ReplayDiffered,
    ResumeChosen,
    SessionStarted,
    SpendingReported,
    TargetChanged,
)
from crashproof.records.lines.codec import decode, encode
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.rank_times import RankTime
from crashproof.records.requests import (
    AnswerMarked,
    AnswerRecord,
    OpenRequest,
    RequestLine,
    RequestLost,
    RequestRefused,
    RequestSent,
    Spending,
)
from crashproof.records.session import FailedSaves, PacePoint, TrainingSession
from crashproof.records.snapshots import SessionFile
from crashproof.records.states import SessionKind
from crashproof.rules.checkpoint_catalog import with_evaluation
from crashproof.rules.history import superseded_from
from crashproof.rules.rank_times.comparison import compare_ranks
from crashproof.rules.session import (
    HISTORY_LENGTH,
    apply_answer,
    apply_event,
    apply_metrics,
    apply_request,
    begin_session,
    update_at,
)
from crashproof.rules.summary import goodput_seconds, progress_summary
from crashproof.rules.trends import moved_average

BEGINNING = SessionStarted(
    timestamp=1000.0, attempt=1, session_id="training_1", config={"lr": 0.1}, config_hash="abc", total_steps=100
)


def line(
    step: int, loss: float = 2.0, *, attempt: int = 1, hours: float = 0.0, at: float = 1000.0
) -> MetricsSnapshot:
    return MetricsSnapshot(
        attempt=attempt,
        step=step,
        timestamp=at,
        wall_clock_hours=hours,
        loss=loss,
        loss_components={"kd": loss},
        learning_rate=0.1,
        samples_processed=8 * step,
        tokens_processed=100 * step,
    )


def started(attempt: int = 1, *, at: float = 1000.0, hours: float = 0.0) -> AttemptStarted:
    return AttemptStarted(
        timestamp=at, attempt=attempt, host="box", pid=7, git_commit="c0ffee", wall_clock_hours=hours
    )


def recorded(step: int, *, path: str | None = None, attempt: int = 1, seconds: float = 0.0, **more: Any) -> Any:
    metadata = CheckpointMetadata(
        checkpoint_step=step,
        checkpoint_path=path or f"checkpoint_{step}.pt",
        created_at=1000.0,
        dataset_position=8 * step,
        recovery_tags=["periodic"],
        attempt=attempt,
        **({"metrics": None, "num_bytes": 5, "digest": "blake3:5a"} | more),
    )
    return CheckpointRecorded(timestamp=1000.0, attempt=attempt, checkpoint=metadata, seconds=seconds)


def session_of(*records: Any) -> TrainingSession:
    session = begin_session(BEGINNING)
    for record in records:
        apply(session, record)
    return session


def apply(session: TrainingSession, record: Any) -> None:
    function: Callable[[TrainingSession, Any], None] = apply_event
    if isinstance(record, MetricsSnapshot):
        function = apply_metrics
    elif isinstance(record, AnswerRecord):
        function = apply_answer
    elif isinstance(record, RequestLine):
        function = apply_request
    function(session, record)


def answer(cost: str = "0.5", *, attempt: int = 1, **more: Any) -> AnswerRecord:
    return AnswerRecord(
        timestamp=1234.0,
        session_id="training_1",
        attempt=attempt,
        prompt_hash="a1",
        cost=Decimal(cost),
        response={},
        **more,
    )


def about_a_request(kind: type, *, attempt: int = 1, at: float = 1234.0, **fields: Any) -> Any:
    return kind(timestamp=at, session_id="training_1", attempt=attempt, prompt_hash="a1", **fields)


def sent(request_id: str = "r1", most: str = "0.75", *, attempt: int = 1) -> RequestSent:
    return about_a_request(RequestSent, request_id=request_id, model="teacher", most=Decimal(most), attempt=attempt)


def ended(kind: type, request_id: str = "r1", *, attempt: int = 1) -> Any:
    return about_a_request(kind, request_id=request_id, reason="it broke", attempt=attempt)


def marked(cost: str = "0.5", *, attempt: int = 1) -> AnswerMarked:
    return about_a_request(AnswerMarked, problem="too short", cost=Decimal(cost), attempt=attempt)


def as_bytes(session: TrainingSession) -> bytes:
    """All of a session, with NaN and infinities distinct."""
    return msgspec.json.encode(session) + repr([each.loss for each in session.metrics_history]).encode()


def test_a_session_begins_with_the_fields_of_its_first_event():
    session = session_of()

    assert ("training_1", 1000.0, {"lr": 0.1}, "abc", 100) == (
        session.session_id,
        session.start_time,
        session.config,
        session.config_hash,
        session.total_steps_target,
    )
    assert (0, None, [], None) == (
        session.steps_completed,
        session.moving_avg_loss,
        session.metrics_history,
        session.last_checkpoint_step,
    )


def test_the_beginning_read_again_changes_nothing():
    assert as_bytes(session_of()) == as_bytes(session_of(BEGINNING))


def test_an_update_moves_all_counts():
    session = session_of(started(), line(1, 4.0), line(2, 3.0, hours=0.5, at=1100.0))

    assert (2, 16, 200, 0.5) == (
        session.steps_completed,
        session.samples_processed,
        session.tokens_processed,
        session.wall_clock_hours,
    )
    assert [1, 2] == [each.step for each in session.metrics_history]
    assert moved_average(4.0, 3.0) == session.moving_avg_loss
    attempt = session.attempts[0]
    assert (1, 2, 1100.0) == (attempt.first_step, attempt.last_step, attempt.last_seen)


def test_only_the_last_thousand_updates_are_kept():
    session = session_of(*(line(step) for step in range(1, 1501)))

    assert 1000 == HISTORY_LENGTH == len(session.metrics_history)
    assert (501, 1500) == (session.metrics_history[0].step, session.metrics_history[-1].step)


def test_a_step_computed_again_supersedes_what_is_at_or_beyond_it():
    session = session_of(
        *(line(step, float(step)) for step in (1, 2, 3, 4)),
        *(line(step, 10.0 * step, attempt=2) for step in (3, 4, 5)),
    )

    assert [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0)] == [
        (each.step, each.loss) for each in session.metrics_history
    ]
    assert (5, 5, 2) == (session.steps_completed, session.highest_step, session.steps_recomputed)


def test_the_moving_average_goes_back_with_the_history():
    session = session_of(line(1, 4.0), line(2, 3.0), line(3, 1e9), line(3, 2.0, attempt=2))

    assert moved_average(moved_average(4.0, 3.0), 2.0) == session.moving_avg_loss


def test_going_back_behind_the_kept_history_begins_a_new_one():
    session = session_of(*(line(step) for step in range(1, 1501)), line(200, 7.0, attempt=2))

    assert [200] == [each.step for each in session.metrics_history]
    assert (200, 7.0, 1) == (session.steps_completed, session.moving_avg_loss, session.steps_recomputed)


def test_a_first_step_numbered_zero_is_fine():
    session = session_of(line(0), line(1), line(0, attempt=2), line(1, attempt=2))

    assert [0, 1] == [each.step for each in session.metrics_history]
    assert 1 == session.steps_completed


def test_updates_that_skip_steps_count_them_all_as_recomputed():
    session = session_of(line(10), line(20), line(30), line(20, attempt=2), line(30, attempt=2), line(40, attempt=2))

    assert 20 == session.steps_recomputed


def test_an_attempt_that_has_a_successor_and_no_end_has_crashed():
    session = session_of(started(1), line(1), started(2, at=2000.0))

    assert ["crashed", "running"] == [attempt.how for attempt in session.attempts]


def test_an_attempt_ends_as_it_says():
    ended = AttemptEnded(timestamp=1500.0, attempt=1, how="raised", error="ValueError: no", wall_clock_hours=0.25)
    session = session_of(started(1), ended, started(2, at=2000.0))

    first = session.attempts[0]
    assert ("raised", "ValueError: no", 1500.0) == (first.how, first.error, first.end)
    assert 0.25 == session.wall_clock_hours


def test_an_attempt_whose_start_was_lost_is_known_by_its_lines():
    session = session_of(line(1, at=1100.0), answer())

    attempt = session.attempts[0]
    assert (1, None, 1234.0, "running") == (attempt.attempt, attempt.start, attempt.last_seen, attempt.how)


def test_attempts_stand_in_order_however_they_arrive():
    session = session_of(
        line(5, attempt=3), line(6, attempt=3), started(1), started(2), started(3), answer(attempt=2)
    )

    assert [1, 2, 3] == [attempt.attempt for attempt in session.attempts]
    assert ["crashed", "crashed", "running"] == [attempt.how for attempt in session.attempts]


@pytest.mark.parametrize(
    "event, expected",
    [
        pytest.param(
            TargetChanged(timestamp=1.0, attempt=1, total_steps=500), {"total_steps_target": 500}, id="target"
        ),
        pytest.param(
            ConfigContinued(timestamp=1.0, attempt=1, config={"lr": 1}, config_hash="d", changed=["lr"]),
            {"config": {"lr": 1}, "config_hash": "d"},
            id="config-continued",
        ),
        pytest.param(
            ConnectionFailed(timestamp=1.0, attempt=1, retry_count=3, error="refused"),
            {"connection_failures": 1, "connection_retries": 3},
            id="connection-failed",
        ),
        pytest.param(
            CheckpointFailed(timestamp=7.0, attempt=1, step=5, error="full"),
            {"failed_saves": FailedSaves(in_a_row=1, total=1, step=5, timestamp=7.0, error="full")},
            id="checkpoint-failed",
        ),
        pytest.param(
            Paused(timestamp=77.0, attempt=1, seconds=60.0),
            {"pause_times": [77.0], "total_pause_duration": 60.0},
            id="paused",
        ),
        pytest.param(
            AnswersRecovered(timestamp=1.0, attempt=1, count=4, cost=Decimal("0.1")),
            {"api_responses_recovered": 4, "api_cost_saved": Decimal("0.1")},
            id="recovered",
        ),
        pytest.param(
            JobAdvanced(timestamp=1.0, attempt=1, done=7),
            {"steps_completed": 7, "highest_step": 7, "steps_computed": 7, "pace": [PacePoint(0.0, 7)]},
            id="job-advanced",
        ),
        pytest.param(
            SpendingReported(timestamp=1.0, attempt=1, spending=Spending(answers=3, spent=Decimal("0.3"))),
            {"api_responses_saved": 3, "api_cost": Decimal("0.3")},
            id="spending-reported",
        ),
        pytest.param(
            ReplayDiffered(timestamp=1.0, attempt=1, step=9, loss_before=1.0, loss_now=2.0),
            {"replay_differed_at": 9},
            id="replay-differed",
        ),
        pytest.param(
            DamageFound(timestamp=1.0, attempt=1, file="f", offset=0, num_bytes=1, reason="r", moved_to="m"),
            {"damage_found": 1},
            id="damage-found",
        ),
        pytest.param(
            DamageFound(
                timestamp=1.0,
                attempt=1,
                file="f",
                offset=0,
                num_bytes=1,
                reason="r",
                moved_to="m",
                cost=Decimal("0.2"),
            ),
            {"damage_found": 1, "api_cost_wasted": Decimal("0.2")},
            id="paid-answer-damaged",
        ),
        pytest.param(
            ResumeChosen(timestamp=1.0, attempt=1, step=5, checkpoint_path="c", skipped=[]), {}, id="resume-chosen"
        ),
    ],
)
def test_an_event_changes_only_what_it_is_about(event, expected):
    session = session_of(started(), event)
    before = session_of(started())

    fields = set(TrainingSession.__struct_fields__) - {"attempts", "goodput"}
    assert expected == {
        name: getattr(session, name) for name in fields if getattr(session, name) != getattr(before, name)
    }


def test_a_checkpoint_ends_the_row_of_failed_saves_over_attempts():
    def failed(step: int, attempt: int) -> CheckpointFailed:
        return CheckpointFailed(timestamp=float(step), attempt=attempt, step=step, error=f"no space at {step}")

    failing = [started(1), failed(5, 1), failed(10, 1), started(2), failed(15, 2)]

    assert (
        FailedSaves(in_a_row=3, total=3, step=15, timestamp=15.0, error="no space at 15")
        == session_of(*failing).failed_saves
    )
    assert FailedSaves(total=3) == session_of(*failing, recorded(20)).failed_saves
    assert (
        FailedSaves(in_a_row=1, total=4, step=25, timestamp=25.0, error="no space at 25")
        == session_of(*failing, recorded(20), failed(25, 2)).failed_saves
    )


def test_the_first_step_that_differed_is_remembered():
    differed = [ReplayDiffered(timestamp=1.0, attempt=2, step=step, loss_before=1.0, loss_now=2.0) for step in (7, 3)]

    assert 7 == session_of(*differed).replay_differed_at


def test_answers_are_counted_with_their_cost():
    session = session_of(answer("0.5"), answer("0.25"))

    assert (2, Decimal("0.75")) == (session.api_responses_saved, session.api_cost)


@pytest.mark.parametrize(
    "record, expected",
    [
        pytest.param(
            sent(), {"api_requests_open": {"r1": OpenRequest(attempt=1, most=Decimal("0.75"))}}, id="request-sent"
        ),
        pytest.param(
            ended(RequestLost), {"api_requests_in_doubt": 1}, id="request-lost-and-nothing-known-of-its-beginning"
        ),
        pytest.param(ended(RequestRefused), {}, id="request-refused-and-nothing-known-of-its-beginning"),
        pytest.param(
            marked(),
            {
                "api_responses_marked": ["a1"],
                "api_responses_bad": 1,
                "api_cost_wasted": Decimal("0.5"),
            },
            id="answer-marked",
        ),
        pytest.param(
            answer(problem="no JSON"),
            {
                "api_responses_saved": 1,
                "api_cost": Decimal("0.5"),
                "api_responses_bad": 1,
                "api_cost_wasted": Decimal("0.5"),
            },
            id="answer-of-no-use",
        ),
    ],
)
def test_a_record_of_a_request_changes_only_what_it_is_about(record, expected):
    session, before = session_of(started(), record), session_of(started())

    fields = set(TrainingSession.__struct_fields__) - {"attempts"}
    assert expected == {
        name: getattr(session, name) for name in fields if getattr(session, name) != getattr(before, name)
    }


@pytest.mark.parametrize(
    "end", [ended(RequestRefused), ended(RequestLost), answer(request_id="r1")], ids=["refused", "lost", "answered"]
)
def test_whatever_ends_a_request_closes_it(end):
    assert {"r2"} == session_of(sent("r1"), sent("r2"), end).api_requests_open.keys()


def test_an_attempt_is_seen_alive_by_its_requests():
    session = session_of(started(1, at=1000.0), sent(attempt=1))

    assert 1234.0 == session.attempts[0].last_seen


def test_checkpoints_are_known_by_step():
    session = session_of(recorded(5), recorded(10))

    assert [5, 10] == list(session.checkpoints)
    assert 10 == session.last_checkpoint_step


def test_an_overwritten_file_holds_the_newest_checkpoint_only():
    session = session_of(recorded(5, path="last.pt"), recorded(10, path="last.pt"))

    assert [10] == list(session.checkpoints)


def test_a_digest_computed_later_makes_a_checkpoint_verifiable():
    hashed = CheckpointHashed(
        timestamp=1.0,
        attempt=1,
        step=5,
        checkpoint_path="checkpoint_5.pt",
        num_bytes=9,
        digest="blake3:d1",
        files=None,
    )
    session = session_of(recorded(5, digest=None), hashed)

    assert session.checkpoints[5].is_verifiable
    assert (9, "blake3:d1") == (session.checkpoints[5].num_bytes, session.checkpoints[5].digest)


@pytest.mark.parametrize(
    "step, path",
    [pytest.param(6, "checkpoint_5.pt", id="another-step"), pytest.param(5, "old.pt", id="another-path")],
)
def test_events_of_a_checkpoint_that_is_not_known_any_more_are_ignored(step, path):
    hashed = CheckpointHashed(
        timestamp=1.0, attempt=1, step=step, checkpoint_path=path, num_bytes=9, digest="blake3:d1", files=None
    )
    aside = CheckpointSetAside(
        timestamp=1.0, attempt=1, step=step, checkpoint_path=path, reason="corrupt", moved_to=None
    )

    assert as_bytes(session_of(recorded(5))) == as_bytes(session_of(recorded(5), hashed, aside))


def test_a_quarantined_checkpoint_is_not_offered_and_not_forgotten():
    aside = CheckpointSetAside(
        timestamp=1.0, attempt=1, step=10, checkpoint_path="checkpoint_10.pt", reason="corrupt", moved_to="x"
    )
    session = session_of(recorded(5), recorded(10), aside)

    assert ([5], 5) == (list(session.checkpoints), session.last_checkpoint_step)
    assert [
        RefusedCheckpoint(checkpoint_step=10, checkpoint_path="checkpoint_10.pt", reason="corrupt")
    ] == session.checkpoints_set_aside


def test_another_checkpoint_at_one_step_stands_beside_the_first():
    session = session_of(recorded(5, path="best.pt"), recorded(5, path="checkpoint_5.pt"))

    assert "checkpoint_5.pt" == session.checkpoints[5].checkpoint_path
    assert ["best.pt"] == [each.checkpoint_path for each in session.checkpoints_beside]


def superseded_at_5() -> list[Any]:
    """A checkpoint that a second attempt has superseded."""
    return [started(1), line(5), recorded(5), started(2), line(4, attempt=2)]


def test_a_checkpoint_beyond_the_step_of_a_later_attempt_is_superseded():
    assert [5] == session_of(*superseded_at_5()).checkpoints_superseded


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(recorded(5, attempt=2), id="recorded again"),
        pytest.param(recorded(5, path="other.pt", attempt=2), id="recorded elsewhere"),
        pytest.param(recorded(9, path="checkpoint_5.pt", attempt=2), id="overwritten"),
        pytest.param(
            CheckpointSetAside(
                timestamp=1.0, attempt=2, step=5, checkpoint_path="checkpoint_5.pt", reason="corrupt", moved_to=None
            ),
            id="quarantined",
        ),
    ],
)
def test_a_checkpoint_that_is_gone_is_not_superseded_any_more(record):
    records = [*superseded_at_5(), record]

    assert [] == session_of(*records).checkpoints_superseded
    assert as_bytes(session_of(*records)) == as_bytes(session_of(*journals_in_turn(records)))


def test_wall_time_is_booked_to_what_it_went_into():
    session = session_of(
        started(1, at=0.0),
        line(1, hours=0.5, at=1800.0),
        line(2, hours=1.0, at=3600.0),
        recorded(2, seconds=360.0),
        line(3, hours=1.5, at=5400.0),
        Paused(timestamp=6000.0, attempt=1, seconds=600.0),
        started(2, at=9000.0, hours=1.5),
        line(3, attempt=2, hours=1.75, at=9900.0),
        line(4, attempt=2, hours=2.0, at=10800.0),
    )

    assert {
        "productive": pytest.approx(1800.0 + 1800.0 - 360.0 + 900.0),
        "recomputed": 0.0,
        "checkpointing": 360.0,
        "evaluating": 0.0,
        "paused": 600.0,
        "hung": 0.0,
        "down": 3000.0,
        "starting": pytest.approx(1800.0 + 900.0),
        "goodput_fraction": pytest.approx(4140.0 / 10800.0),
    } == msgspec.structs.asdict(goodput_seconds(session))


def test_steps_computed_again_are_no_productive_time():
    session = session_of(
        started(1),
        *(line(step, hours=step / 10) for step in range(1, 6)),
        started(2, hours=0.5),
        *(line(step, attempt=2, hours=0.5 + (step - 2) / 10) for step in range(3, 8)),
    )

    seconds = goodput_seconds(session)
    assert pytest.approx(360.0 * 4 + 360.0 * 2) == seconds.productive
    assert pytest.approx(360.0 * 2) == seconds.recomputed
    assert 3 == session.steps_recomputed


def test_downtime_and_startup_do_not_distort_the_estimate():
    records: list[Any] = [started(1, at=0.0)]
    records += [line(step, hours=step * 10 / 3600, at=step * 10.0) for step in range(1, 51)]
    # Down for a day, then 10 minutes of start-up until the first step is done.
    hours = 500 / 3600
    records.append(started(2, at=86_900.0, hours=hours))
    records += [
        line(step, attempt=2, hours=hours + (590 + (step - 50) * 10) / 3600, at=87_500.0 + (step - 50) * 10)
        for step in range(51, 61)
    ]
    summary = progress_summary(session_of(*records), now=0.0, wall_clock_hours=0.0)

    assert 40 * 10 / 3600 == pytest.approx(summary.estimated_remaining_hours, rel=0.001)


steps_between = st.integers(1, 3)
losses = st.floats(allow_nan=True, allow_infinity=True) | st.floats(0.0, 10.0)


@st.composite
def lives(draw: st.DrawFn) -> list[Any]:
    """What the attempts of one run wrote, in the order in which they wrote it."""
    records: list[Any] = []
    hours, now, resume_from = 0.0, 1000.0, 0
    for attempt in range(1, draw(st.integers(1, 3)) + 1):
        now += draw(st.sampled_from([0.0, 60.0, 1e5]))
        records.append(started(attempt, at=now, hours=hours))
        step = draw(st.integers(0, resume_from))
        for _ in range(draw(st.integers(0, 12))):
            seconds = draw(st.sampled_from([0.1, 1 / 3, 7.0, 1e4]))
            now, hours = now + seconds, round(hours + seconds / 3600, 7)
            records.append(draw_record(draw, attempt, step, hours, now))
            if isinstance(records[-1], MetricsSnapshot):
                step = records[-1].step
        resume_from = step
        if draw(st.booleans()):
            records.append(
                AttemptEnded(timestamp=now, attempt=attempt, how="raised", error="E", wall_clock_hours=hours)
            )
    return without_doubles(records)


def draw_record(draw: st.DrawFn, attempt: int, step: int, hours: float, now: float) -> Any:
    others = ["checkpoint", "pause", "failure", "answer", "recovered", "aside", "request", "mark", "damage"]
    kind = draw(st.sampled_from(["line"] * len(others) + others))
    if kind == "checkpoint":
        return recorded(step, attempt=attempt, seconds=draw(st.sampled_from([0.1, 0.7, 3.3])))
    if kind == "aside":
        return CheckpointSetAside(
            timestamp=now,
            attempt=attempt,
            step=step,
            checkpoint_path=f"checkpoint_{step}.pt",
            reason="corrupt",
            moved_to=None,
        )
    if kind == "pause":
        return Paused(timestamp=now, attempt=attempt, seconds=draw(st.sampled_from([0.1, 0.2, 60.0])))
    if kind == "failure":
        return ConnectionFailed(timestamp=now, attempt=attempt, retry_count=2, error="refused")
    request_id = draw(st.sampled_from(["r1", "r2", "r3", "r4"]))
    cost = draw(st.sampled_from(["0.1", "98765.432109876543", "3E-12", "0"]))
    if kind == "answer":
        problem = draw(st.sampled_from([msgspec.UNSET, "no JSON"]))
        asked = draw(st.sampled_from([msgspec.UNSET, f"{request_id} answered"]))
        return answer(cost, attempt=attempt, problem=problem, request_id=asked)
    if kind == "request":
        end = draw(st.sampled_from([RequestSent, RequestRefused, RequestLost]))
        if end is RequestSent:
            return sent(draw(st.sampled_from([request_id, f"{request_id} answered"])), cost, attempt=attempt)
        return ended(end, request_id, attempt=attempt)
    if kind == "mark":
        return marked(cost, attempt=attempt)
    if kind == "damage":
        return DamageFound(
            timestamp=now,
            attempt=attempt,
            file="api_recovery.jsonl",
            offset=0,
            num_bytes=1,
            reason="r",
            moved_to="m",
            cost=Decimal(cost),
        )
    if kind == "recovered":
        return AnswersRecovered(timestamp=now, attempt=attempt, count=3, cost=Decimal(cost))
    return line(max(0, step + draw(st.integers(-2, 3))), draw(losses), attempt=attempt, hours=hours, at=now)


def journals_in_turn(records: list[Any]) -> list[Any]:
    """The same records as they are read back: all events, all updates, all requests, all answers."""
    journals = [MetricsSnapshot, RequestLine, AnswerRecord]
    events = [each for each in records if not any(isinstance(each, kind) for kind in journals)]
    return events + [each for kind in journals for each in records if isinstance(each, kind)]


def without_doubles(records: list[Any]) -> list[Any]:
    """The same without a second beginning of a request, and without one behind its answer: both never happen."""
    done: set[str] = set()
    kept = []
    for each in records:
        if isinstance(each, RequestSent):
            if each.request_id in done:
                continue
            done.add(each.request_id)
        if isinstance(each, AnswerRecord) and isinstance(each.request_id, str):
            done.add(each.request_id)
        kept.append(each)
    return kept


def through_the_disk(session: TrainingSession) -> TrainingSession:
    fields = {name: getattr(session, name) for name in TrainingSession.__struct_fields__}
    snapshot = decode(encode(SessionFile(saved_at=0.0, journals={}, **fields)), msgspec.json.Decoder(SessionFile))
    return TrainingSession(**{name: getattr(snapshot, name) for name in TrainingSession.__struct_fields__})


def with_names(records: list[Any]) -> list[Any]:
    """Lines as the tracker writes them: what JSON cannot hold is named beside."""
    return [
        msgspec.structs.replace(each, nonfinite={"loss": repr(each.loss), "loss_components.kd": repr(each.loss)})
        if isinstance(each, MetricsSnapshot) and not math.isfinite(each.loss)
        else each
        for each in records
    ]


@settings(max_examples=80)
@given(lives())
def test_a_session_read_from_its_journals_equals_the_live_one(records):
    assert as_bytes(session_of(*records)) == as_bytes(session_of(*journals_in_turn(records)))


@settings(max_examples=80)
@given(lives(), st.data())
def test_a_snapshot_and_the_tails_behind_it_say_the_same_as_all(records, data):
    records = with_names(records)
    cut = data.draw(st.integers(0, len(records)))
    restored = through_the_disk(session_of(*records[:cut]))
    for record in journals_in_turn(records[cut:]):
        apply(restored, record)

    assert as_bytes(session_of(*records)) == as_bytes(restored)


@settings(max_examples=40)
@given(lives())
def test_the_kept_history_is_the_canonical_one(records):
    canonical: list[int] = []
    for step in (each.step for each in records if isinstance(each, MetricsSnapshot)):
        canonical = [*canonical[: superseded_from(canonical, step)], step]

    assert canonical == [each.step for each in session_of(*records).metrics_history]


@settings(max_examples=40)
@given(lives())
def test_no_part_of_the_wall_time_is_negative(records):
    seconds = goodput_seconds(session_of(*records))

    assert all(each >= 0.0 for each in msgspec.structs.astuple(seconds))
    assert seconds.goodput_fraction <= 1.0


def compared(step: int, *seconds: float, attempt: int = 1) -> RankTimesMeasured:
    ranks = [RankTime(rank=rank, host="a", seconds=each, most_seconds=each) for rank, each in enumerate(seconds)]
    times = compare_ranks(ranks, step=step, num_steps=4, step_seconds=1.0)
    return RankTimesMeasured(timestamp=1000.0, attempt=attempt, times=times)


def test_the_newest_comparison_of_ranks_is_known():
    session = session_of(started(1), compared(5, 0.1, 0.2), compared(90, 0.3, 0.2))

    assert (90, 0) == (session.rank_times.step, session.rank_times.slowest[0].rank)


def test_another_attempt_has_compared_no_ranks_yet():
    session = session_of(started(1), compared(5, 0.1, 0.2), started(2))

    assert session.rank_times is None


def evaluated(step: int, perplexity: float, *, attempt: int = 1, seconds: float = 0.0) -> EvaluationRecorded:
    return EvaluationRecorded(
        timestamp=1000.0, attempt=attempt, step=step, results={"perplexity": perplexity}, seconds=seconds
    )


def test_the_newest_evaluations_are_known():
    session = session_of(*(evaluated(step, 9.0) for step in range(1, 21)))

    assert list(range(13, 21)) == [each.step for each in session.evaluations]


def test_an_evaluation_goes_to_the_checkpoint_of_its_step_and_attempt():
    session = session_of(recorded(4), recorded(8), evaluated(4, 9.0), evaluated(8, 7.0, attempt=2), evaluated(9, 6.0))

    assert [{"perplexity": 9.0}, None] == [each.evaluation for each in session.checkpoints.values()]


def test_a_checkpoint_names_the_non_finite_results_of_its_evaluation():
    session = session_of(recorded(4), evaluated(4, math.inf))

    read_back = msgspec.json.decode(msgspec.json.encode(session.checkpoints[4]))
    assert ({"perplexity": None}, {"evaluation.perplexity": "Infinity"}) == (
        read_back["evaluation"],
        read_back["nonfinite"],
    )


def test_an_evaluation_is_no_productive_time():
    session = session_of(
        started(),
        line(1, hours=0.0),
        line(2, hours=1.0),
        evaluated(2, 9.0, seconds=600.0),
        recorded(2, seconds=300.0),
        line(3, hours=2.0),
    )

    seconds = goodput_seconds(session)

    assert (7200.0 - 600.0 - 300.0, 600.0, 300.0) == tuple(
        getattr(seconds, name) for name in ("productive", "evaluating", "checkpointing")
    )


def removed(*gone: tuple[int, str]) -> CheckpointRemoved:
    return CheckpointRemoved(
        timestamp=1000.0,
        attempt=1,
        checkpoints=[RemovedCheckpoint(step=step, checkpoint_path=path) for step, path in gone],
        verified="checkpoint_9.pt",
    )


def test_removed_checkpoints_are_only_named_for_their_deletion():
    session = session_of(
        recorded(4),
        recorded(6),
        recorded(6, path="best.pt"),
        recorded(8),
        removed((4, "checkpoint_4.pt"), (6, "checkpoint_6.pt")),
    )

    assert ({6, 8}, []) == (session.checkpoints.keys(), session.checkpoints_beside)
    assert "best.pt" == session.checkpoints[6].checkpoint_path
    assert ["checkpoint_4.pt", "checkpoint_6.pt"] == [each.checkpoint_path for each in session.checkpoints_removing]
    assert 8 == session.last_checkpoint_step


def test_only_the_newest_removal_is_remembered():
    session = session_of(
        recorded(4), recorded(6), recorded(8), removed((4, "checkpoint_4.pt")), removed((6, "checkpoint_6.pt"))
    )

    assert [RemovedCheckpoint(step=6, checkpoint_path="checkpoint_6.pt")] == session.checkpoints_removing


def test_after_the_deletion_only_failed_ones_are_remembered():
    refused = RemovedCheckpoint(step=6, checkpoint_path="checkpoint_6.pt")
    session = session_of(
        recorded(4),
        recorded(6),
        recorded(8),
        removed((4, "checkpoint_4.pt"), (6, "checkpoint_6.pt")),
        CheckpointsDeleted(timestamp=1000.0, attempt=1, left=[refused]),
    )

    assert [refused] == session.checkpoints_removing


def test_a_path_that_is_used_again_is_not_deleted_any_more():
    session = session_of(recorded(4), recorded(8), removed((4, "checkpoint_4.pt")), recorded(4))

    assert [] == session.checkpoints_removing


def test_another_checkpoint_at_the_path_of_a_removed_one_stays():
    session = session_of(recorded(4, path="a.pt"), recorded(8), recorded(6, path="a.pt"), removed((4, "a.pt")))

    assert [6, 8] == list(session.checkpoints)


def test_the_lowest_loss_of_removed_checkpoints_is_remembered():
    losses = {1: 3.0, 2: math.nan, 3: 2.0, 4: None, 5: 2.5}
    known = [recorded(step, metrics=None if loss is None else line(step, loss)) for step, loss in losses.items()]
    session = session_of(*known, removed((2, "checkpoint_2.pt"), (4, "checkpoint_4.pt")))
    without_any = session.lowest_loss_removed
    for step in (1, 3, 5):
        apply(session, removed((step, f"checkpoint_{step}.pt")))

    assert (None, 2.0) == (without_any, session.lowest_loss_removed)


@pytest.mark.parametrize(
    "step, expected",
    [pytest.param(4, 4, id="its own"), pytest.param(5, 4, id="before"), pytest.param(1, None, id="none")],
)
def test_the_update_at_a_step_is_its_own_or_the_newest_before_it(step, expected):
    found = update_at(session_of(line(2), line(4), line(6)), step)

    assert expected == (found and found.step)


def test_a_checkpoint_gets_only_the_results_of_its_step_and_attempt():
    session = session_of(evaluated(2, 9.0), evaluated(4, 8.0), evaluated(4, 7.0, attempt=2))
    checkpoint = recorded(4).checkpoint

    assert {"perplexity": 8.0} == with_evaluation(checkpoint, session.evaluations).evaluation
    assert checkpoint == with_evaluation(checkpoint, session.evaluations[:1])


def test_a_session_without_a_config_gets_it_from_the_first_beginning_that_has_one():
    waiting = msgspec.structs.replace(BEGINNING, config={}, config_hash="", total_steps=7)
    told = msgspec.structs.replace(BEGINNING, timestamp=2000.0, total_steps=50)
    later = msgspec.structs.replace(BEGINNING, config={"lr": 0.2}, config_hash="def")
    session = begin_session(waiting)
    for event in (waiting, recorded(4), told, later):
        apply_event(session, event)

    assert ({"lr": 0.1}, "abc", 50, 50, 2000.0) == (
        session.config,
        session.config_hash,
        session.total_steps_target,
        session.total_steps_at_start,
        session.start_time,
    )
    assert [4] == list(session.checkpoints)


JOB = msgspec.structs.replace(BEGINNING, kind=SessionKind.GENERATION, total_steps=300)


def job_events(attempt: int, start: float, hours: float, *done: int) -> list[Event]:
    """An attempt of a job, that reports every ten seconds."""
    return [
        AttemptStarted(timestamp=start, attempt=attempt, host="box", pid=1, git_commit=None, wall_clock_hours=hours),
        *(
            JobAdvanced(timestamp=start + 10.0 * number, attempt=attempt, done=each)
            for number, each in enumerate(done, 1)
        ),
    ]


def test_a_job_is_estimated_by_the_pace_of_its_new_requests():
    session = begin_session(JOB)
    for event in job_events(1, 1000.0, 0.0, 50, 100):
        apply_event(session, event)
    before = progress_summary(session, now=1020.0, wall_clock_hours=0.0)
    # A day later: what is kept has its end at once.
    for event in job_events(2, 90_000.0, session.wall_clock_hours, 100, 150):
        apply_event(session, event)
    after = progress_summary(session, now=90_020.0, wall_clock_hours=0.0)

    assert 40.0 == pytest.approx(3600 * before.estimated_remaining_hours)
    assert (150, 150, 150) == (session.steps_completed, session.highest_step, session.steps_computed)
    assert 40.0 == pytest.approx(3600 * session.wall_clock_hours)
    assert 45.0 == pytest.approx(3600 * after.estimated_remaining_hours)
    assert (True, "running", 90_020.0) == (after.is_job, after.health, after.last_update_time)


def test_a_clock_that_goes_back_gives_a_job_no_time_back():
    session = begin_session(JOB)
    for event in [*job_events(1, 1000.0, 0.0, 50), JobAdvanced(timestamp=500.0, attempt=1, done=60)]:
        apply_event(session, event)

    assert (60, 10.0) == (session.steps_completed, session.busy_seconds)


def test_an_attempt_knows_its_boot_and_when_in_it_it_began_and_ended():
    session = session_of(
        AttemptStarted(
            timestamp=1.0,
            attempt=1,
            host="box",
            pid=7,
            git_commit=None,
            wall_clock_hours=0.5,
            boot_id="b",
            since_boot=40.0,
        ),
        Paused(timestamp=2.0, attempt=1, seconds=30.0, cause="standstill"),
        AttemptEnded(timestamp=3.0, attempt=1, how="completed", error=None, wall_clock_hours=0.5, since_boot=90.0),
    )

    (attempt,) = session.attempts
    assert ("b", 40.0, 90.0, 0.5, 30.0) == (
        attempt.boot_id,
        attempt.boot_seconds_at_start,
        attempt.boot_seconds_at_end,
        attempt.hours_at_start,
        attempt.paused_seconds,
    )


def test_a_job_is_timed_by_the_hours_that_it_reports_and_without_them_by_its_timestamps():
    jobs = [
        JobAdvanced(timestamp=1e6, attempt=1, done=1, wall_clock_hours=0.5),
        JobAdvanced(timestamp=7200.0, attempt=1, done=2),
    ]

    by_hours = session_of(started(1, at=0.0), jobs[0])
    by_time = session_of(started(1, at=3600.0), jobs[1])
    assert (1800.0, 3600.0) == (by_hours.busy_seconds, by_time.busy_seconds)


def test_a_part_after_a_snapshot_without_the_average_before_it_computes_that_again():
    session = session_of(line(1, 4.0), line(2, 2.0), line(3, 9.0))
    session.moving_avg_loss_before = None
    apply(session, line(3, 1.0))

    assert session_of(line(1, 4.0), line(2, 2.0), line(3, 1.0)).moving_avg_loss == session.moving_avg_loss


def test_steps_done_are_one_more_than_the_newest_step_where_a_loop_counts_from_0():
    assert (3, 3, 0) == tuple(
        session.steps_done for session in (session_of(line(1), line(3)), session_of(line(0), line(2)), session_of())
    )


def test_a_part_of_the_update_that_closed_a_bucket_of_losses_opens_it_again():
    updates = [line(step) for step in range(1, 65)]
    without = msgspec.structs.replace(line(65), loss=math.nan, without_loss=True)

    assert (1, 0) == numbers_of_buckets(session_of(*updates))
    assert (1, 0) == numbers_of_buckets(session_of(*updates, line(64, 1.0)))
    assert (1, 1) == numbers_of_buckets(session_of(*updates, without, line(65, 1.0)))
    assert (1, 1) == numbers_of_buckets(session_of(*updates, line(65, 3.0), line(65, 1.0)))


def numbers_of_buckets(session: TrainingSession) -> tuple[int, int]:
    return len(session.loss_buckets), session.loss_updates_open

"""The interface of `training.progress_tracker`, as its users have it."""

from __future__ import annotations

import math

import pytest

from training.progress_tracker import CheckpointMetadata, MetricsSnapshot, ProgressTracker, TrainingSession

CONFIG = {
    "model": {"vocab_size": 32000, "d_model": 128},
    "train": {"batch_size": 2, "steps": 10},
    "progress": {"checkpoint_interval": 5},
}


@pytest.fixture
def progress_dir(run_dir):
    return run_dir / "progress"


@pytest.fixture
def open_run(progress_dir, clock):
    """Start the run, or start it again, with the arguments of the interface."""
    opened = []

    def start(config=CONFIG, total_steps=10, **others) -> ProgressTracker:
        opened.append(
            ProgressTracker(output_dir=progress_dir, config=config, total_steps=total_steps, clock=clock, **others)
        )
        return opened[-1]

    yield start
    for tracker in opened:
        tracker.close()


@pytest.fixture
def tracker(open_run) -> ProgressTracker:
    return open_run()


def test_the_files_have_their_names(tracker, progress_dir):
    assert {
        "session_file": progress_dir / "session.json",
        "progress_file": progress_dir / "progress.json",
        "metrics_file": progress_dir / "metrics.jsonl",
        "api_recovery_file": progress_dir / "api_recovery.jsonl",
        "checkpoint_manifest": progress_dir / "checkpoints.json",
    } == {
        name: getattr(tracker, name)
        for name in ("session_file", "progress_file", "metrics_file", "api_recovery_file", "checkpoint_manifest")
    }


def test_all_snapshots_exist_from_the_first_moment(tracker):
    files = (tracker.session_file, tracker.progress_file, tracker.checkpoint_manifest)

    assert [True] * 3 == [file.exists() for file in files]


def test_the_folder_may_be_given_as_text(run_dir):
    tracker = ProgressTracker(str(run_dir / "progress"), {}, 10)
    tracker.close()

    assert run_dir / "progress" / "session.json" == tracker.session_file


def test_a_new_session_knows_what_it_was_told(tracker, clock):
    session = tracker.session

    assert isinstance(session, TrainingSession)
    assert session.session_id.startswith("training_")
    assert (clock.now(), 10, CONFIG) == (session.start_time, session.total_steps_target, session.config)
    assert 64 == len(session.config_hash)


def test_a_session_may_be_given_its_name(open_run):
    assert "my_session" == open_run(session_id="my_session").session.session_id


def test_two_new_sessions_have_names_of_their_own(open_run):
    names = {open_run({"seed": number}).session.session_id for number in range(3)}

    assert 3 == len(names)


def test_the_session_has_its_promised_names(tracker):
    promised = {
        "session_id",
        "start_time",
        "config_hash",
        "total_steps_target",
        "steps_completed",
        "samples_processed",
        "tokens_processed",
        "checkpoints",
        "last_checkpoint_step",
        "metrics_history",
        "moving_avg_loss",
        "api_responses_saved",
        "api_responses_recovered",
        "pause_times",
        "total_pause_duration",
        "connection_retries",
        "connection_failures",
    }

    assert set() == promised - set(TrainingSession.__struct_fields__)


def test_an_update_is_known_at_once(tracker, update, clock):
    clock.advance(hours=1)
    update(tracker, 1, loss=2.5)

    session = tracker.session
    assert (1, 8, 1024, 2.5) == (
        session.steps_completed,
        session.samples_processed,
        session.tokens_processed,
        session.moving_avg_loss,
    )
    snapshot = session.metrics_history[0]
    assert isinstance(snapshot, MetricsSnapshot)
    assert (1, 2.5, {"kd": 1.5, "ce": 0.5}, 1e-3, clock.now(), 1.0) == (
        snapshot.step,
        snapshot.loss,
        snapshot.loss_components,
        snapshot.learning_rate,
        snapshot.timestamp,
        snapshot.wall_clock_hours,
    )


def test_a_metrics_line_has_the_names_of_the_snapshot(tracker, read_lines):
    tracker.update_metrics(
        step=1,
        loss=2.5,
        loss_components={"kd": 2.0, "ce": 0.5},
        learning_rate=1e-4,
        samples_processed=32,
        tokens_processed=4096,
        throughput_samples_per_sec=3.5,
        throughput_tokens_per_sec=448.0,
    )
    line = read_lines(tracker.metrics_file)[0]

    expected = {
        "step": 1,
        "loss": 2.5,
        "loss_components": {"kd": 2.0, "ce": 0.5},
        "learning_rate": 1e-4,
        "samples_processed": 32,
        "tokens_processed": 4096,
        "throughput_samples_per_sec": 3.5,
        "throughput_tokens_per_sec": 448.0,
        "wall_clock_hours": 0.0,
        "attempt": 1,
    }
    assert expected == {name: line[name] for name in expected}
    assert "timestamp" in line


def test_there_is_one_line_for_each_update_and_nothing_else(tracker, update, read_lines, save_checkpoint):
    for step in range(1, 6):
        update(tracker, step)
    save_checkpoint(tracker, 5)
    tracker.record_pause(1.0)
    tracker.save()

    assert [1, 2, 3, 4, 5] == [line["step"] for line in read_lines(tracker.metrics_file)]


def test_losses_are_written_with_full_precision(tracker, update, read_lines):
    losses = [1 / 3, math.pi, 1e-17, 123456789.123456789]
    for step, loss in enumerate(losses, start=1):
        update(tracker, step, loss=loss)

    assert losses == [line["loss"] for line in read_lines(tracker.metrics_file)]


def test_the_moving_average_is_exponential_over_a_hundred_losses(tracker, update):
    losses = [4.0, 3.0, 5.0, 2.0]
    for step, loss in enumerate(losses, start=1):
        update(tracker, step, loss=loss)

    expected = 4.0
    for loss in losses[1:]:
        expected += 2 / 101 * (loss - expected)
    assert expected == pytest.approx(tracker.session.moving_avg_loss)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_kept_and_does_not_poison_the_average(tracker, update, read_json, loss):
    update(tracker, 1, loss=2.0)
    update(tracker, 2, loss=loss)
    tracker.save()

    assert 2.0 == tracker.session.moving_avg_loss
    assert repr(loss) == repr(tracker.session.metrics_history[-1].loss)
    assert "non_finite" == read_json(tracker.progress_file)["loss_trend"]["verdict"]


def test_the_last_thousand_updates_are_in_the_history(open_run, update):
    tracker = open_run(total_steps=2000)
    for step in range(1, 1101):
        update(tracker, step)

    assert (1000, 101, 1100) == (
        len(tracker.session.metrics_history),
        tracker.session.metrics_history[0].step,
        tracker.session.metrics_history[-1].step,
    )


def test_a_checkpoint_is_known_by_its_step(tracker, update, save_checkpoint):
    update(tracker, 5, loss=1.5)
    save_checkpoint(tracker, 5, recovery_tags=["periodic", "best_loss"])
    checkpoint = tracker.session.checkpoints[5]

    assert isinstance(checkpoint, CheckpointMetadata)
    assert (5, 40, ["periodic", "best_loss"], 1.5) == (
        checkpoint.checkpoint_step,
        checkpoint.dataset_position,
        checkpoint.recovery_tags,
        checkpoint.metrics.loss,
    )
    assert 5 == tracker.session.last_checkpoint_step


def test_the_manifest_reads_as_its_users_read_it(tracker, update, save_checkpoint, read_json):
    for step, loss in ((5, 1.5), (10, 1.25)):
        update(tracker, step, loss=loss)
        save_checkpoint(tracker, step)
    manifest = read_json(tracker.checkpoint_manifest)

    # jq '.checkpoints[] | {step: .checkpoint_step, loss: .metrics.loss}'
    assert [(5, 1.5), (10, 1.25)] == [
        (each["checkpoint_step"], each["metrics"]["loss"]) for each in manifest["checkpoints"].values()
    ]
    assert (["5", "10"], 10) == (list(manifest["checkpoints"]), manifest["last_checkpoint_step"])
    assert "saved_at" in manifest


def test_the_session_file_reads_as_its_users_read_it(tracker, update, save_checkpoint, read_json):
    update(tracker, 5, loss=1.5)
    save_checkpoint(tracker, 5)
    tracker.save()
    session = read_json(tracker.session_file)

    # jq '.moving_avg_loss'
    assert 1.5 == session["moving_avg_loss"]
    assert [5] == [each["checkpoint_step"] for each in session["checkpoints"].values()]
    assert set(TrainingSession.__struct_fields__) <= session.keys()


def test_the_progress_file_reads_as_its_users_read_it(tracker, update, read_json):
    for step in range(1, 11):
        update(tracker, step)
    tracker.save()
    progress = read_json(tracker.progress_file)

    # jq '.progress_pct, .steps_completed'
    assert (100.0, 10) == (progress["progress_pct"], progress["steps_completed"])


def test_the_newest_whole_checkpoint_is_offered_with_its_absolute_path(tracker, save_checkpoint):
    paths = [save_checkpoint(tracker, step) for step in (5, 10)]
    offered = tracker.get_recovery_checkpoint()

    assert isinstance(offered, CheckpointMetadata)
    assert (10, str(paths[1]), 80) == (offered.checkpoint_step, offered.checkpoint_path, offered.dataset_position)


def test_without_checkpoints_there_is_none_to_offer(tracker):
    assert tracker.get_recovery_checkpoint() is None


def test_a_path_that_does_not_exist_is_offered_where_nothing_better_was_recorded(tracker):
    tracker.record_checkpoint(step=100, checkpoint_path="/nowhere/checkpoint_100.pt", dataset_position=800)

    assert "/nowhere/checkpoint_100.pt" == tracker.get_recovery_checkpoint().checkpoint_path


def test_a_paid_answer_is_kept_and_given_back(tracker):
    response = {"choices": [{"message": {"content": "Zwölf."}}], "usage": {"total_tokens": 12}}
    tracker.record_api_response(prompt_hash="abc123", response=response, cost=0.002)

    assert response == tracker.get_api_response("abc123")
    assert tracker.get_api_response("unknown") is None
    assert (1, 1) == (tracker.session.api_responses_saved, tracker.session.api_responses_recovered)


def test_an_answers_line_has_its_promised_names(tracker, read_lines, clock):
    tracker.record_api_response("abc123", {"text": "yes"}, cost=0.002)
    line = read_lines(tracker.api_recovery_file)[0]

    expected = {"timestamp": clock.now(), "prompt_hash": "abc123", "response": {"text": "yes"}, "cost": 0.002}
    assert expected == {name: line[name] for name in expected}


def test_failed_connections_are_counted_with_their_retries(tracker):
    tracker.record_connection_failure(retry_count=1, error="timeout")
    tracker.record_connection_failure(retry_count=3, error="refused")

    assert (2, 4) == (tracker.session.connection_failures, tracker.session.connection_retries)


def test_pauses_are_counted_with_their_moments(tracker, clock):
    moments = []
    for duration in (60.0, 90.0):
        clock.advance(duration)
        tracker.record_pause(duration)
        moments.append(clock.now())

    assert (moments, 150.0) == (tracker.session.pause_times, tracker.session.total_pause_duration)


def test_the_loss_trend_has_its_promised_names(tracker, update):
    before = tracker.get_loss_trend()
    for step, loss in enumerate([3.0, 2.5, 2.0, 1.5, 1.0], start=1):
        update(tracker, step, loss=loss)
    trend = tracker.get_loss_trend(window_size=4)

    assert (False, False) == (before["has_data"], before["is_improving"])
    expected = {
        "has_data": True,
        "current_loss": 1.0,
        "min_loss": 1.0,
        "max_loss": 2.5,
        "window_size": 4,
        "is_improving": True,
        "moving_avg_loss": tracker.session.moving_avg_loss,
    }
    assert expected == {name: trend[name] for name in expected}


def test_rising_losses_are_not_improving(tracker, update):
    for step in range(1, 21):
        update(tracker, step, loss=1.0 + 0.1 * step)

    trend = tracker.get_loss_trend()
    assert (False, "diverging") == (trend["is_improving"], trend["verdict"])


def test_the_summary_has_its_promised_names(tracker, update, save_checkpoint, clock):
    for step in range(1, 6):
        clock.advance(hours=1)
        update(tracker, step)
    save_checkpoint(tracker, 5)
    clock.advance(hours=2)
    tracker.record_pause(7200)
    tracker.record_api_response("a", {"text": "yes"}, cost=0.5)
    tracker.record_connection_failure(2, "refused")
    summary = tracker.get_progress_summary()

    expected = {
        "session_id": tracker.session.session_id,
        "progress_pct": 50.0,
        "steps_completed": 5,
        "total_steps_target": 10,
        "samples_processed": 40,
        "tokens_processed": 5120,
        "elapsed_wall_clock_hours": pytest.approx(5.0),
        "estimated_remaining_hours": pytest.approx(5.0),
        "total_pause_duration_hours": 2.0,
        "api_responses_saved": 1,
        "connection_failures": 1,
        "connection_retries": 2,
        "last_checkpoint_step": 5,
        "checkpoints_count": 1,
    }
    assert expected == {name: summary[name] for name in expected}
    assert summary["loss_trend"]["has_data"]


def test_the_progress_file_has_the_fields_of_the_summary(tracker, update, read_json):
    update(tracker, 1)
    tracker.save()
    written = read_json(tracker.progress_file)

    assert tracker.get_progress_summary() == {name: written[name] for name in tracker.get_progress_summary()}


def test_a_second_start_goes_on_with_the_session(open_run, update, save_checkpoint):
    first = open_run()
    update(first, 5)
    path = save_checkpoint(first, 5)
    first.record_api_response("a", {"text": "yes"})
    session_id = first.session.session_id
    first.close()
    second = open_run()

    assert (session_id, 5, 1) == (
        second.session.session_id,
        second.session.steps_completed,
        second.session.api_responses_saved,
    )
    assert str(path) == second.get_recovery_checkpoint().checkpoint_path
    assert {"text": "yes"} == second.get_api_response("a")


def test_a_changed_config_begins_a_new_session_and_keeps_the_old_one(open_run, update, progress_dir, caplog):
    first = open_run()
    update(first, 5)
    changed = CONFIG | {"train": {"batch_size": 4, "steps": 10}}
    second = open_run(changed)

    assert first.session.session_id != second.session.session_id
    assert 0 == second.session.steps_completed
    assert (progress_dir / "archive" / first.session.session_id / "metrics.jsonl").exists()
    assert "train.batch_size: 2 → 4" in caplog.text


def test_training_over_several_days_adds_up(open_run, update, save_checkpoint, clock, read_lines):
    for day in range(3):
        tracker = open_run(total_steps=300)
        for step in range(100 * day + 1, 100 * day + 101):
            clock.advance(minutes=6)
            update(tracker, step)
        save_checkpoint(tracker, 100 * day + 100)
        tracker.close()
        clock.advance(hours=14)
    tracker = open_run(total_steps=300)
    summary = tracker.get_progress_summary()

    assert (300, 100.0, 3) == (
        summary["steps_completed"],
        summary["progress_pct"],
        summary["checkpoints_count"],
    )
    assert 30.0 == pytest.approx(summary["elapsed_wall_clock_hours"])
    assert list(range(1, 301)) == [line["step"] for line in read_lines(tracker.metrics_file)]
    assert [1, 2, 3] == sorted({line["attempt"] for line in read_lines(tracker.metrics_file)})


def test_every_file_is_strict_json(tracker, update, save_checkpoint, read_json, read_lines):
    update(tracker, 1, loss=math.nan, loss_components={"kd": math.inf})
    save_checkpoint(tracker, 1)
    tracker.record_api_response("a", {"score": math.nan})
    tracker.record_connection_failure(1, 'a "quoted" error\nof two lines')
    tracker.close("raised", ValueError("\0"))

    for file in (tracker.session_file, tracker.progress_file, tracker.checkpoint_manifest):
        assert isinstance(read_json(file), dict)
    for journal in (tracker.metrics_file, tracker.api_recovery_file, tracker.metrics_file.with_name("events.jsonl")):
        assert all(isinstance(line, dict) for line in read_lines(journal))


def test_saving_brings_all_files_up_to_date(tracker, update, read_json, clock):
    update(tracker, 7)
    clock.advance(3.0)
    tracker.save()

    assert [7, 7] == [read_json(file)["steps_completed"] for file in (tracker.session_file, tracker.progress_file)]
    assert clock.now() == read_json(tracker.progress_file)["saved_at"]


def test_closing_twice_is_closing_once(tracker):
    tracker.close()
    tracker.close()

    assert ["completed"] == [attempt.how for attempt in tracker.session.attempts]

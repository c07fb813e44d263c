"""The interface of `training.progress_integration`, as its users have it."""

from __future__ import annotations

import math

import pytest
import torch

from training.progress_integration import (
    TrainingProgressContext,
    calculate_metrics_from_step,
    get_recovery_checkpoint,
    setup_progress_tracking,
    training_progress_context,
)

CONFIG = {
    "model": {"vocab_size": 32000, "d_model": 128},
    "train": {"batch_size": 2, "steps": 10},
    "progress": {"checkpoint_interval": 5},
}


@pytest.fixture
def run(run_dir, clock):
    """A context around a loop, with the arguments of the interface."""

    def enter(config=CONFIG, total_steps=10, **others):
        return training_progress_context(
            config=config, output_dir=run_dir, total_steps=total_steps, **({"clock": clock} | others)
        )

    return enter


@pytest.fixture
def train(run, update, run_dir, clock):
    """The loop of the guide: update every step, save every fifth."""

    def loop(first: int, last: int, **others) -> TrainingProgressContext:
        with run(**others) as progress:
            for step in range(first, last + 1):
                clock.advance(2.0)
                update(progress, step, loss=3.0 / step)
                if step % 5 == 0:
                    path = run_dir / f"checkpoint_{step}.pt"
                    path.write_bytes(b"weights")
                    progress.record_checkpoint(
                        step=step, checkpoint_path=path, dataset_position=8 * step, is_best=step == 10
                    )
        return progress

    return loop


def test_the_progress_folder_lies_under_the_output_folder(train, run_dir):
    train(1, 5)

    assert {"session.json", "progress.json", "metrics.jsonl", "checkpoints.json", "api_recovery.jsonl"} <= {
        path.name for path in (run_dir / "progress").iterdir()
    }


def test_a_run_of_ten_steps_ends_at_ten_and_a_hundred_percent(train, run_dir, read_json):
    train(1, 10)
    progress = read_json(run_dir / "progress" / "progress.json")
    manifest = read_json(run_dir / "progress" / "checkpoints.json")

    assert (10, 100.0, "completed") == (progress["steps_completed"], progress["progress_pct"], progress["status"])
    assert ["5", "10"] == list(manifest["checkpoints"])


def test_the_context_is_a_training_progress_context(run):
    with run() as progress:
        assert isinstance(progress, TrainingProgressContext)


def test_the_tracker_is_there_on_the_main_process(run):
    with run() as progress:
        assert progress.tracker.session.session_id.startswith("training_")


def test_off_the_main_process_nothing_happens_not_even_a_folder(train, run_dir):
    run_dir.parent.mkdir(exist_ok=True)
    with training_progress_context(CONFIG, run_dir, 10, is_main_process=False) as progress:
        progress.update_metrics(1, 2.0, {"kd": 2.0}, 0.1, 8, 1024)
        progress.record_checkpoint(5, run_dir / "checkpoint_5.pt", 40)
        progress.record_api_response("a", {"text": "yes"}, cost=0.1)
        progress.record_connection_failure(1, "refused")
        tracker = progress.tracker

    assert tracker is None
    assert not run_dir.exists()


def test_off_the_main_process_the_summary_says_not_initialized(run):
    with run(is_main_process=False) as progress:
        assert {"status": "not_initialized"} == progress.get_progress_summary()


def test_a_context_that_was_never_entered_says_so_and_touches_no_disk(run_dir):
    context = setup_progress_tracking(CONFIG, run_dir, 10)

    assert {"status": "not_initialized"} == context.get_progress_summary()
    assert not run_dir.exists()


def test_a_context_that_was_set_up_tracks_once_it_is_entered(run_dir, update, read_lines):
    context = setup_progress_tracking(config=CONFIG, output_dir=run_dir, total_steps=10, is_main_process=True)
    with context:
        update(context, 1)

    assert [1] == [line["step"] for line in read_lines(run_dir / "progress" / "metrics.jsonl")]


def test_throughput_is_computed(train, run_dir, read_lines):
    train(1, 5)

    assert [(4.0, 512.0)] * 5 == [
        (line["throughput_samples_per_sec"], line["throughput_tokens_per_sec"])
        for line in read_lines(run_dir / "progress" / "metrics.jsonl")
    ]


def test_the_best_checkpoint_is_tagged(train, run_dir, read_json):
    train(1, 10)
    checkpoints = read_json(run_dir / "progress" / "checkpoints.json")["checkpoints"]

    assert [["periodic"], ["periodic", "best_loss"]] == [each["recovery_tags"] for each in checkpoints.values()]


def test_answers_and_failures_are_kept(run, run_dir, read_lines):
    with run() as progress:
        progress.record_api_response(prompt_hash="abc", response={"text": "yes"}, cost=0.5)
        progress.record_connection_failure(retry_count=2, error="refused")
        summary = progress.get_progress_summary()

    assert (1, 1, 2) == (
        summary["api_responses_saved"],
        summary["connection_failures"],
        summary["connection_retries"],
    )
    assert ["abc"] == [line["prompt_hash"] for line in read_lines(run_dir / "progress" / "api_recovery.jsonl")]


def test_an_answer_of_an_earlier_attempt_is_given_again(run):
    with run() as progress:
        progress.record_api_response("abc", {"text": "yes"})
    with run() as progress:
        answer = progress.tracker.get_api_response("abc")

    assert {"text": "yes"} == answer


def test_the_summary_inside_is_that_of_the_tracker(run, update):
    with run() as progress:
        update(progress, 5)
        assert progress.tracker.get_progress_summary() == progress.get_progress_summary()


def test_the_summary_is_still_there_after_the_loop(train):
    summary = train(1, 5).get_progress_summary()

    assert (50.0, "ended_early") == (summary["progress_pct"], summary["status"])


def test_an_exception_goes_on_and_the_run_knows_how_it_ended(run, update, run_dir, read_json):
    with pytest.raises(RuntimeError, match="CUDA out of memory"), run() as progress:
        update(progress, 3)
        raise RuntimeError("CUDA out of memory")

    session = read_json(run_dir / "progress" / "session.json")
    assert [("raised", "RuntimeError: CUDA out of memory")] == [
        (attempt["how"], attempt["error"]) for attempt in session["attempts"]
    ]
    assert 3 == session["steps_completed"]


def test_without_a_run_there_is_nothing_to_recover(run_dir):
    assert get_recovery_checkpoint(run_dir) is None
    assert not run_dir.exists()


def test_the_newest_checkpoint_is_recovered_with_the_place_in_the_data(train, run_dir):
    train(1, 10)
    path, dataset_position = get_recovery_checkpoint(run_dir)

    assert (run_dir / "checkpoint_10.pt", 80) == (path, dataset_position)
    assert path.is_absolute()


def test_a_relative_output_folder_is_recovered_absolutely(train, run_dir, monkeypatch):
    train(1, 5)
    monkeypatch.chdir(run_dir.parent)

    assert run_dir / "checkpoint_5.pt" == get_recovery_checkpoint(run_dir.name)[0]


def test_a_damaged_checkpoint_is_passed_over(train, run_dir):
    train(1, 10)
    (run_dir / "checkpoint_10.pt").write_bytes(b"torn")

    assert (run_dir / "checkpoint_5.pt", 40) == get_recovery_checkpoint(run_dir)


def test_recovery_never_starts_from_zero_in_silence(train, run_dir):
    train(1, 10)
    for path in run_dir.glob("*.pt"):
        path.unlink()

    with pytest.raises(Exception, match=r"checkpoint_10.pt: it is missing; checkpoint_5.pt: it is missing"):
        get_recovery_checkpoint(run_dir)


def test_a_run_that_was_killed_resumes_where_its_checkpoint_is(train, run_dir, tmp_path, left_by_a_kill, run, update):
    with run() as progress:
        for step in range(1, 9):
            update(progress, step)
            if step == 5:
                (run_dir / "checkpoint_5.pt").write_bytes(b"weights")
                progress.record_checkpoint(5, run_dir / "checkpoint_5.pt", 40)
        left = left_by_a_kill(run_dir)
    path, dataset_position = get_recovery_checkpoint(left)
    with training_progress_context(CONFIG, left, 10) as progress:
        for step in range(6, 11):
            update(progress, step)
        summary = progress.get_progress_summary()

    assert (left / "checkpoint_5.pt", 40) == (path, dataset_position)
    assert (10, 3, 2, None) == (
        summary["steps_completed"],
        summary["steps_recomputed"],
        summary["attempt"],
        summary["replay_differed_at"],
    )


def test_a_multi_day_run_shows_its_training_time_and_no_spike(train, clock, run_dir, read_lines):
    for day in range(3):
        train(100 * day + 1, 100 * day + 100, total_steps=300)
        clock.advance(days=1)
    summary = train(301, 300, total_steps=300).get_progress_summary()
    lines = read_lines(run_dir / "progress" / "metrics.jsonl")

    assert 600 / 3600 == pytest.approx(summary["elapsed_wall_clock_hours"], abs=1e-6)
    assert {4.0} == {line["throughput_samples_per_sec"] for line in lines}
    assert 2 * 86400 <= summary["goodput_seconds"]["down"] <= 3 * 86400


def test_loss_alone_is_its_own_total():
    assert (2.5, {"total": 2.5}, 0.0) == calculate_metrics_from_step(2.5)


def test_tensors_become_plain_numbers():
    loss, components, learning_rate = calculate_metrics_from_step(
        torch.tensor(2.5), loss_dict={"kd": torch.tensor(2.0), "ce": 0.5}
    )

    assert (2.5, {"kd": 2.0, "ce": 0.5}, 0.0) == (loss, components, learning_rate)
    assert {float} == {type(loss), type(components["kd"]), type(learning_rate)}


def test_the_learning_rate_comes_from_the_scheduler():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.125)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)

    assert 0.125 == calculate_metrics_from_step(1.0, scheduler=scheduler)[2]


def test_a_loss_that_is_not_finite_is_told_as_it_is():
    assert math.isnan(calculate_metrics_from_step(torch.tensor(float("nan")))[0])


def test_the_numbers_of_a_step_can_be_reported_as_they_are(run, run_dir, read_lines):
    with run() as progress:
        loss, components, learning_rate = calculate_metrics_from_step(torch.tensor(2.5), {"kd": torch.tensor(2.5)})
        progress.update_metrics(
            step=1,
            loss=loss,
            loss_components=components,
            learning_rate=learning_rate,
            samples_processed=2,
            tokens_processed=256,
        )

    assert [(2.5, {"kd": 2.5})] == [
        (line["loss"], line["loss_components"]) for line in read_lines(run_dir / "progress" / "metrics.jsonl")
    ]


def test_a_context_names_its_session_and_shows_what_it_was_given(run, update, run_dir):
    with run(session_id="night_run") as progress:
        update(progress, 1)
        for step in (1, 2):
            path = run_dir / f"checkpoint_{step}.pt"
            path.write_bytes(b"weights")
            progress.record_checkpoint(step, path, dataset_position=8 * step)

        assert "night_run" == progress.tracker.session.session_id

    assert (CONFIG, run_dir, 10, True) == (
        progress.config,
        progress.output_dir,
        progress.total_steps,
        progress.is_main_process,
    )
    assert 2 == progress.checkpoint_counter
    with pytest.raises(AttributeError):
        progress.total_steps = 11


def test_tracking_set_up_for_a_loop_that_cannot_be_indented_takes_a_session_id(run_dir):
    progress = setup_progress_tracking(CONFIG, run_dir, 10, session_id="night_run")
    with progress:
        assert "night_run" == progress.get_progress_summary()["session_id"]


def test_off_the_main_process_nothing_is_recorded_and_nothing_counted(run, run_dir):
    with run(is_main_process=False) as progress:
        progress.record_checkpoint(1, run_dir / "checkpoint_1.pt", dataset_position=8)

    assert (0, None, False) == (progress.checkpoint_counter, progress.tracker, progress.is_main_process)
    assert not run_dir.exists()

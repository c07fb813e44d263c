"""How loops count: from 0, a step in several reports, the number of a batch, gaps."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import crashproof
from crashproof import RunReader
from crashproof.cli.app import app
from crashproof.errors import InvalidMetric
from crashproof.exporters.replay import replay
from crashproof.exporters.tables import write_csv
from crashproof.reading.curves import CurveFollower


def losses(run) -> list[tuple[int, float]]:
    return [(update.step, update.loss) for update in RunReader.open(run).history()]


def curve(run) -> list[tuple[int, float | None]]:
    follower = CurveFollower(RunReader.open(run).folder)
    follower.refresh()
    return [(point.last_step, point.series["loss"].last) for point in follower.curve(most_points=10_000).points]


def warnings_about(caplog, words: str) -> list[str]:
    return [each for each in caplog.messages if words in each]


@pytest.fixture
def train_gan(open_tracker, update, clock):
    """Two reports of each step, as of the two networks of a GAN."""

    def train(first: int, last: int, **given):
        tracker = open_tracker(**given)
        for step in range(first, last + 1):
            clock.advance(seconds=1)
            update(tracker, step, loss=step + 0.5, loss_components={"d_loss": step + 0.5})
            update(tracker, step, loss=step + 0.25, loss_components={"g_loss": step + 0.25})
        return tracker

    return train


# -- a loop that counts from 0


def test_a_loop_that_counts_from_0_and_ends_at_its_last_step_is_complete(open_tracker, update, run_dir):
    tracker = open_tracker(total_steps=10)
    for step in range(10):
        update(tracker, step)
    tracker.close()

    summary = RunReader.open(run_dir).progress(now=0.0)
    assert (100.0, "complete", 9, 0) == (
        summary.progress_pct,
        summary.health,
        summary.steps_completed,
        summary.steps_recomputed,
    )
    assert 0.0 == summary.estimated_remaining_hours


def test_a_loop_that_counts_from_1_is_not_complete_one_step_before_its_end(open_tracker, update, run_dir):
    tracker = open_tracker(total_steps=10)
    for step in range(1, 10):
        update(tracker, step)
    tracker.close()

    summary = RunReader.open(run_dir).progress(now=0.0)
    assert (90.0, "ended_early") == (summary.progress_pct, summary.health)


def test_step_0_is_in_the_history_the_curve_the_frame_and_the_table(open_tracker, update, run_dir, tmp_path):
    tracker = open_tracker()
    for step in range(3):
        update(tracker, step, loss=float(step))

    expected = [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert expected == losses(run_dir) == curve(run_dir)
    assert [0, 1, 2] == list(crashproof.load(run_dir).metrics["step"])
    assert 3 == write_csv(run_dir, tmp_path / "run.csv")


def test_step_0_computed_by_a_second_attempt_is_recomputed_once(open_tracker, update, run_dir):
    update(open_tracker(), 0, loss=1.0)
    tracker = open_tracker()
    update(tracker, 0, loss=1.0)
    update(tracker, 1, loss=0.5)

    assert (1, [(0, 1.0), (1, 0.5)]) == (tracker.session.steps_recomputed, losses(run_dir))
    assert tracker.session.replay_differed_at is None


def test_a_checkpoint_at_step_0_before_the_first_update_is_not_abandoned_by_it(
    open_tracker, update, save_checkpoint, run_dir
):
    tracker = open_tracker()
    save_checkpoint(tracker, 0)
    for step in range(3):
        update(tracker, step)

    assert [] == tracker.session.checkpoints_superseded
    assert 0 == tracker.get_recovery_checkpoint().checkpoint_step


def test_a_checkpoint_at_step_0_after_its_update_is_resumed_from(open_tracker, update, save_checkpoint, run_dir):
    tracker = open_tracker()
    update(tracker, 0)
    save_checkpoint(tracker, 0)
    update(tracker, 1)
    resumed = open_tracker()

    path, position = crashproof.get_recovery_checkpoint(run_dir)
    assert ("checkpoint_0.pt", 0) == (path.name, position)
    assert 0 == resumed.get_recovery_checkpoint().checkpoint_step


# -- a step in several reports


def test_two_reports_of_a_step_are_one_update_with_the_components_of_both(train_gan, run_dir, caplog):
    tracker = train_gan(1, 5)

    assert [(step, step + 0.25) for step in range(1, 6)] == losses(run_dir)
    last = list(RunReader.open(run_dir).history())[-1]
    assert {"d_loss": 5.5, "g_loss": 5.25} == last.loss_components
    assert 10 == len(list(RunReader.open(run_dir).all_updates()))
    session = tracker.session
    assert (0, 5, 5, 40) == (
        session.steps_recomputed,
        session.parts_merged,
        session.steps_completed,
        session.samples_processed,
    )
    assert 1 == len(warnings_about(caplog, "Step 1 was reported again by the same attempt"))


def test_the_moving_average_and_the_trend_take_a_step_in_two_reports_once(train_gan, open_tracker, update, tmp_path):
    merged = train_gan(1, 20)
    plain = open_tracker(output_dir=tmp_path / "plain")
    for step in range(1, 21):
        update(plain, step, loss=step + 0.25)

    assert plain.session.moving_avg_loss == merged.session.moving_avg_loss
    assert plain.get_loss_trend() == merged.get_loss_trend()


@pytest.mark.parametrize("num_parts", [2, 3, 5])
def test_curves_have_each_step_of_a_long_run_once(open_tracker, update, run_dir, num_parts):
    tracker = open_tracker(total_steps=10_000)
    for step in range(1000):
        for part in range(num_parts):
            update(tracker, step, loss=float(step + part), loss_components={f"part_{part}": 1.0})
    tracker.close()

    assert [(step, step + num_parts - 1.0) for step in range(1000)] == curve(run_dir)
    blocks = (run_dir / "progress" / "curves.jsonl").read_bytes().splitlines()
    assert [256, 256, 256] == [json.loads(each)["num_updates"] for each in blocks]


def test_a_curve_that_is_followed_part_by_part_is_the_one_that_is_read_at_the_end(open_tracker, update, run_dir):
    tracker = open_tracker(total_steps=10_000)
    follower = None
    for step in range(600):
        for part in range(2):
            update(tracker, step, loss=float(step + part))
            follower = follower or CurveFollower(RunReader.open(run_dir).folder)
            follower.refresh()

    assert curve(run_dir) == [
        (point.last_step, point.series["loss"].last) for point in follower.curve(most_points=10_000).points
    ]
    assert [] == follower.recomputed


def test_a_session_that_is_rebuilt_from_the_journal_has_the_same_merged_updates(train_gan, run_dir):
    live = train_gan(0, 30).session
    (run_dir / "progress" / "session.json").unlink()

    rebuilt = RunReader.open(run_dir).session()

    assert live.metrics_history == rebuilt.metrics_history
    assert (live.moving_avg_loss, live.parts_merged, live.goodput) == (
        rebuilt.moving_avg_loss,
        rebuilt.parts_merged,
        rebuilt.goodput,
    )


def test_a_resume_between_the_two_reports_of_a_step_keeps_nothing_of_the_torn_one(
    open_tracker, update, train_gan, run_dir
):
    train_gan(1, 4)
    update(open_tracker(), 5, loss_components={"d_loss": 9.0})
    tracker = train_gan(5, 6)

    assert [1, 2, 3, 4, 5, 6] == [step for step, _ in losses(run_dir)]
    merged = list(RunReader.open(run_dir).history())[4]
    assert {"d_loss": 5.5, "g_loss": 5.25} == merged.loss_components
    assert 1 == tracker.session.steps_recomputed


def test_recomputed_steps_in_two_reports_are_compared_report_by_report(train_gan, caplog):
    train_gan(1, 6)
    tracker = train_gan(3, 8)

    assert tracker.session.replay_differed_at is None
    assert [] == warnings_about(caplog, "recomputed with a different loss")


def test_a_recomputed_step_whose_first_report_differs_is_told(train_gan, open_tracker, update, caplog):
    train_gan(1, 6)
    tracker = open_tracker()
    update(tracker, 4, loss=4.75)

    assert 4 == tracker.session.replay_differed_at


def test_a_second_report_that_counts_no_samples_leaves_the_counts_and_the_throughput(open_tracker, update, clock):
    tracker = open_tracker()
    for step in range(1, 10):
        clock.advance(seconds=1)
        update(tracker, step, samples_processed=8 * step, tokens_processed=100 * step)
        update(tracker, step, samples_processed=0, tokens_processed=0)
    newest = tracker.session.metrics_history[-1]

    assert (72, 900) == (tracker.session.samples_processed, tracker.session.tokens_processed)
    assert (pytest.approx(8.0, rel=0.01), pytest.approx(100.0, rel=0.01)) == (
        newest.throughput_samples_per_sec,
        newest.throughput_tokens_per_sec,
    )


def test_a_loss_that_the_second_report_mends_is_no_nan(open_tracker, update, run_dir):
    tracker = open_tracker()
    update(tracker, 1, loss=math.nan)
    update(tracker, 1, loss=0.5)
    update(tracker, 2, loss=0.5)

    assert [(1, 0.5), (2, 0.5)] == losses(run_dir) == curve(run_dir)
    assert 0 == tracker.get_loss_trend()["num_non_finite"]


# -- the number of a batch in its epoch


def test_the_number_of_a_batch_as_step_is_warned_of_once_and_the_newest_epoch_counts(
    open_tracker, update, run_dir, caplog
):
    tracker = open_tracker()
    for epoch in range(3):
        for batch in range(5):
            update(tracker, batch, loss=10.0 * epoch + batch)

    assert [(batch, 20.0 + batch) for batch in range(5)] == losses(run_dir) == curve(run_dir)
    (warning,) = warnings_about(caplog, "was reported after step")
    assert "Step 0 was reported after step 4 by the same attempt, without a resume" in warning
    assert "optimizer steps since the beginning of the run" in warning


def test_a_resume_within_one_process_is_no_mistake(open_tracker, update, save_checkpoint, caplog):
    tracker = open_tracker()
    for step in range(1, 6):
        update(tracker, step)
        if step == 3:
            save_checkpoint(tracker, step)
    tracker.get_recovery_checkpoint()
    update(tracker, 4)

    assert [] == warnings_about(caplog, "was reported after step")


def test_gaps_between_steps_are_fine(open_tracker, update, run_dir, caplog):
    tracker = open_tracker()
    for step in (0, 10, 20, 50):
        update(tracker, step, loss=float(step))

    assert [0, 10, 20, 50] == [step for step, _ in losses(run_dir)]
    assert [] == caplog.messages


# -- what a step may be


@pytest.mark.parametrize(
    "step", [3, 3.0, np.int64(3), np.float32(3), torch.tensor(3), np.array(3)], ids=lambda each: type(each).__name__
)
def test_a_whole_number_of_any_kind_is_a_step(open_tracker, update, run_dir, step):
    update(open_tracker(), step)

    assert [3] == [step for step, _ in losses(run_dir)]


@pytest.mark.parametrize("step", ["3", -1, 2.5, math.nan, math.inf, None, 2**63, torch.zeros(2)], ids=repr)
def test_what_is_no_step_is_refused_in_words_and_leaves_the_run_as_it_was(open_tracker, update, run_dir, step):
    tracker = open_tracker()
    update(tracker, 1)
    with pytest.raises(InvalidMetric, match="step must be"):
        tracker.update_metrics(step, 1.0, {}, 0.1, 8, 100)
    update(tracker, 2)

    assert [1, 2] == [step for step, _ in losses(run_dir)]


def test_exports_of_a_live_gan_never_start_over(train_gan, open_tracker, update, run_dir, tmp_path):
    pytest.importorskip("tensorboard")
    from crashproof.exporters.tensorboard import TensorBoardSink

    tracker = train_gan(0, 3)
    first = replay(run_dir, TensorBoardSink(tmp_path / "logs"))
    update(tracker, 4, loss_components={"d_loss": 1.0})
    replay(run_dir, TensorBoardSink(tmp_path / "logs"))
    update(tracker, 4, loss_components={"g_loss": 1.0})
    update(tracker, 5)
    second = replay(run_dir, TensorBoardSink(tmp_path / "logs"))
    tracker.close()
    last = replay(run_dir, TensorBoardSink(tmp_path / "logs"))

    assert [False, False, False] == [each.has_begun_anew for each in (first, second, last)]
    assert [2, 4, 5] == [each.last_step for each in (first, second, last)]


@pytest.mark.parametrize("options", [[], ["--last", "3"], ["--all"]], ids=["all-steps", "newest", "with-superseded"])
def test_the_history_command_prints_a_step_in_two_reports_once(train_gan, run_dir, capsys, options):
    train_gan(0, 2).close()

    with pytest.raises(SystemExit):
        app(["history", str(run_dir), "--json", *options])

    rows = [json.loads(each) for each in capsys.readouterr().out.splitlines()]
    assert [0, 1, 2] == [row["step"] for row in rows]
    assert [{"d_loss": step + 0.5, "g_loss": step + 0.25} for step in range(3)] == [
        row["loss_components"] for row in rows
    ]


def test_a_page_that_follows_a_gan_is_given_each_step_once_it_has_both_reports(
    train_gan, open_tracker, update, run_dir
):
    pytest.importorskip("starlette")
    from crashproof.dashboard.watched_run import WatchedRun

    tracker = train_gan(0, 3)
    run = WatchedRun("run", RunReader.open(run_dir).folder)
    tail = run.tail(after=0)
    update(tracker, 4, loss_components={"d_loss": 1.0})
    between = run.tail(after=tail.end)
    update(tracker, 4, loss=9.0, loss_components={"g_loss": 1.0})
    update(tracker, 5)
    after = run.tail(after=between.end)

    assert [[0, 1, 2], [3], [4]] == [each.step for each in (tail, between, after)]
    assert [9.0] == after.series["loss"].last
    assert [1.0, 1.0] == [after.series[f"loss_components.{name}"].last[0] for name in ("d_loss", "g_loss")]

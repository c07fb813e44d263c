from __future__ import annotations

import errno
import gc
import logging
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter

import msgspec
import numpy as np
import pytest
import torch

from crashproof import RunReader, TrackerSettings, write_atomically
from crashproof.disk.lock import holder_of
from crashproof.errors import CrashproofError, DiskFull, InvalidMetric, NoUsableCheckpoint, RunClosed
from crashproof.records.events import (
    AnswersRecovered,
    AttemptEnded,
    CheckpointHashed,
    CheckpointSetAside,
    ReplayDiffered,
    ResumeChosen,
)
from crashproof.testing import FaultyDisk, run_and_kill

SMALL_IS_LARGE = TrackerSettings(has_heartbeat=False, large_checkpoint_bytes=1)


def events_of(run_dir, kind):
    return [event for event in RunReader.open(run_dir).events() if isinstance(event, kind)]


# Metrics.


def test_an_update_is_in_the_journal_when_the_call_returns(open_tracker, update, run_dir):
    tracker = open_tracker()
    update(tracker, 1)

    assert [1] == [line.step for line in RunReader.open(run_dir).history()]
    assert [] == RunReader.open(run_dir).problems()


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(2.5, id="float"),
        pytest.param(np.float32(2.5), id="numpy"),
        pytest.param(torch.tensor(2.5), id="tensor"),
        pytest.param(torch.tensor(2.5, requires_grad=True), id="tensor-with-gradient"),
    ],
)
def test_all_numbers_of_an_update_may_come_from_a_framework(open_tracker, run_dir, number):
    tracker = open_tracker()
    tracker.update_metrics(
        np.int64(3), number, {"kd": number}, number, np.int64(24), torch.tensor(300), number, number
    )
    line = RunReader.open(run_dir).session().metrics_history[0]

    assert (3, 2.5, {"kd": 2.5}, 2.5, 24, 300, 2.5, 2.5) == (
        line.step,
        line.loss,
        line.loss_components,
        line.learning_rate,
        line.samples_processed,
        line.tokens_processed,
        line.throughput_samples_per_sec,
        line.throughput_tokens_per_sec,
    )


@pytest.mark.parametrize("step", [None, -1, 1.5, "three"])
def test_an_update_of_no_step_is_refused_and_leaves_nothing(open_tracker, update, run_dir, step):
    tracker = open_tracker()
    with pytest.raises(InvalidMetric, match=r"^step must be"):
        tracker.update_metrics(step, 0.5, {}, 0.1, 8, 100)

    assert 0 == tracker.session.steps_completed
    assert [] == list(RunReader.open(run_dir).all_updates())


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"loss": math.nan}, id="nan-loss"),
        pytest.param({"loss": -math.inf}, id="infinite-loss"),
        pytest.param({"loss_components": {"kd": math.inf, "ce": -math.inf}}, id="components"),
        pytest.param({"learning_rate": math.nan}, id="learning-rate"),
        pytest.param({"throughput_samples_per_sec": math.inf}, id="throughput"),
    ],
)
def test_numbers_that_are_not_finite_come_back_as_they_were(open_tracker, update, run_dir, given, read_lines):
    tracker = open_tracker()
    update(tracker, 1, **given)
    update(tracker, 2)
    tracker.save()

    assert "nonfinite" in read_lines(tracker.metrics_file)[0]
    live = tracker.session.metrics_history
    assert repr(live) == repr(list(RunReader.open(run_dir).history()))
    assert repr(live) == repr(RunReader.open(run_dir).session().metrics_history)
    assert 2.0 == tracker.session.moving_avg_loss or math.isfinite(given.get("loss", 2.0))


def test_sums_beyond_the_largest_float_are_no_reason_to_call_a_number_infinite(open_tracker, update, read_lines):
    tracker = open_tracker()
    update(tracker, 1, loss=1e308, loss_components={"kd": 1e308, "ce": 1e308})

    assert "nonfinite" not in read_lines(tracker.metrics_file)[0]


def test_throughput_is_computed_where_it_is_not_given(open_tracker, update, clock):
    tracker = open_tracker()
    for step in range(1, 4):
        clock.advance(2.0)
        update(tracker, step)
    update(tracker, 4, throughput_samples_per_sec=7.0, throughput_tokens_per_sec=9.0)

    assert [(4.0, 512.0)] * 3 + [(7.0, 9.0)] == [
        (line.throughput_samples_per_sec, line.throughput_tokens_per_sec) for line in tracker.session.metrics_history
    ]


def test_throughput_is_right_from_the_first_step_after_a_resume(open_tracker, update, clock):
    first = open_tracker()
    for step in range(1, 21):
        clock.advance(2.0)
        update(first, step)
    first.close()
    clock.advance(days=3)
    second = open_tracker()
    for step in range(21, 24):
        clock.advance(2.0)
        update(second, step)

    assert {4.0} == {line.throughput_samples_per_sec for line in second.session.metrics_history}


# A device that is not waited for.


def test_a_tensor_on_a_device_is_never_waited_for_by_the_caller(open_tracker, update, device, run_dir):
    tracker = open_tracker()
    update(tracker, 1, device.tensor(2.5))
    update(tracker, 2, 2.0)
    before = [line.step for line in RunReader.open(run_dir).history()]
    device.finish()
    update(tracker, 3, device.tensor(1.5))

    assert [] == before
    assert [(1, 2.5), (2, 2.0), (3, 1.5)] == [(line.step, line.loss) for line in RunReader.open(run_dir).history()]
    assert 0 == device.num_waits


def test_updates_that_wait_for_the_device_are_counted_in_the_summary(open_tracker, update, device):
    tracker = open_tracker()
    update(tracker, 1, device.tensor(2.5))
    waiting = tracker.get_progress_summary()["lines_waiting"]
    device.finish()
    tracker.save()

    assert (1, 0) == (waiting, tracker.get_progress_summary()["lines_waiting"])


@pytest.mark.parametrize(
    "wait_for_all",
    [
        pytest.param(lambda tracker, save: tracker.save(), id="save"),
        pytest.param(lambda tracker, save: tracker.close(), id="close"),
        pytest.param(lambda tracker, save: save(tracker, 1), id="checkpoint"),
    ],
)
def test_whoever_needs_all_numbers_waits_for_the_device(
    open_tracker, update, device, run_dir, save_checkpoint, wait_for_all
):
    tracker = open_tracker()
    update(tracker, 1, device.tensor(2.5), loss_components={"kd": device.tensor(0.5)})
    device.has_to_be_waited_for = True
    wait_for_all(tracker, save_checkpoint)

    assert [(2.5, {"kd": 0.5})] == [(line.loss, line.loss_components) for line in RunReader.open(run_dir).history()]


def test_the_time_of_an_update_is_that_of_its_report(open_tracker, update, device, clock):
    tracker = open_tracker()
    clock.advance(10.0)
    update(tracker, 1, device.tensor(2.5))
    reported_at = clock.now()
    clock.advance(50.0)
    device.finish()
    tracker.save()

    line = tracker.session.metrics_history[0]
    assert (reported_at, pytest.approx(10 / 3600, abs=1e-7)) == (line.timestamp, line.wall_clock_hours)


def test_a_pause_after_an_update_that_waits_for_the_device_is_not_taken_from_its_time(
    open_tracker, update, device, clock
):
    tracker = open_tracker()
    clock.advance(hours=2)
    update(tracker, 1, device.tensor(2.5))
    clock.advance(hours=1)
    device.has_to_be_waited_for = True
    tracker.record_pause(3600)
    clock.advance(hours=1)
    update(tracker, 2)

    assert [2.0, 3.0] == [line.wall_clock_hours for line in tracker.session.metrics_history]
    assert 3600.0 == pytest.approx(tracker.get_progress_summary()["goodput_seconds"]["productive"])


# Time.


def test_training_time_has_no_pauses_and_no_downtime(open_tracker, update, clock):
    first = open_tracker()
    clock.advance(hours=1)
    update(first, 1)
    clock.advance(hours=10)
    first.record_pause(10 * 3600)
    clock.advance(hours=1)
    update(first, 2)
    first.close()
    clock.advance(days=2)
    second = open_tracker()
    clock.advance(hours=0.5)
    update(second, 3)

    summary = second.get_progress_summary()
    assert 2.5 == pytest.approx(summary["elapsed_wall_clock_hours"])
    assert 10.0 == summary["total_pause_duration_hours"]
    assert 48 * 3600 == pytest.approx(summary["goodput_seconds"]["down"])
    assert [1.0, 2.0, 2.5] == pytest.approx([line.wall_clock_hours for line in second.session.metrics_history])


def test_a_wall_clock_that_jumps_does_not_change_training_time(open_tracker, update, clock):
    tracker = open_tracker()
    clock.advance(hours=1)
    clock.jump(-86400.0)
    update(tracker, 1)

    assert 1.0 == tracker.session.wall_clock_hours


def test_the_estimate_is_not_distorted_by_restarts_pauses_and_downtime(
    open_tracker, update, save_checkpoint, clock, left_by_a_kill, run_dir
):
    def train(tracker, first, last):
        for step in range(first, last + 1):
            clock.advance(10.0)
            update(tracker, step)
            if step % 10 == 0:
                clock.advance(50.0)
                save_checkpoint(tracker, step, seconds=50.0)

    tracker = open_tracker(total_steps=600)
    train(tracker, 1, 145)
    clock.advance(hours=5)
    tracker.record_pause(5 * 3600)
    train(tracker, 146, 160)
    left = left_by_a_kill(run_dir)
    clock.advance(days=1)
    resumed = open_tracker(total_steps=600, output_dir=left)
    clock.advance(minutes=20)
    train(resumed, 161, 400)

    # Ten steps take 150 s, stall included; two hundred are left.
    hours = resumed.get_progress_summary()["estimated_remaining_hours"]
    assert 3000 / 3600 == pytest.approx(hours, rel=0.03)


def test_the_time_that_remains_is_known_once_there_is_a_pace(open_tracker, update, clock):
    tracker = open_tracker(total_steps=100)
    before = tracker.get_remaining_seconds()
    for step in range(1, 51):
        clock.advance(3.0)
        update(tracker, step)

    assert before is None
    assert 150.0 == pytest.approx(tracker.get_remaining_seconds(), rel=0.01)


@pytest.mark.parametrize("duration", [-1.0, math.nan, math.inf, "long", None])
def test_a_pause_lasts_a_finite_number_of_seconds(open_tracker, run_dir, duration):
    tracker = open_tracker()
    with pytest.raises(InvalidMetric, match=r"^duration must be"):
        tracker.record_pause(duration)

    assert [] == tracker.session.pause_times
    assert 0.0 == RunReader.open(run_dir).session().total_pause_duration


# Checkpoints.


def test_a_file_that_other_code_wrote_is_recorded(open_tracker, update, save_checkpoint, run_dir):
    tracker = open_tracker()
    update(tracker, 5, loss=1.25)
    path = save_checkpoint(tracker, 5, b"weights", recovery_tags=["best_loss"])

    checkpoint = tracker.session.checkpoints[5]
    assert ("checkpoint_5.pt", 7, ["best_loss"], 40, 1.25) == (
        checkpoint.checkpoint_path,
        checkpoint.num_bytes,
        checkpoint.recovery_tags,
        checkpoint.dataset_position,
        checkpoint.metrics.loss,
    )
    assert str(path) == tracker.get_recovery_checkpoint().checkpoint_path


def test_a_checkpoint_before_the_first_update_has_no_metrics(open_tracker, save_checkpoint):
    tracker = open_tracker()
    save_checkpoint(tracker, 0)

    assert tracker.session.checkpoints[0].metrics is None
    assert ["periodic"] == tracker.session.checkpoints[0].recovery_tags


@pytest.mark.parametrize(
    "tags, expected",
    [
        pytest.param(None, ["periodic"], id="none"),
        pytest.param([], [], id="empty"),
        pytest.param(("a", "b"), ["a", "b"], id="tuple"),
        pytest.param("best_loss", ["best_loss"], id="one-text"),
    ],
)
def test_tags_say_why_a_checkpoint_is_kept(open_tracker, save_checkpoint, tags, expected):
    tracker = open_tracker()
    save_checkpoint(tracker, 5, recovery_tags=tags)

    assert expected == tracker.session.checkpoints[5].recovery_tags


def test_all_files_of_a_sharded_checkpoint_are_recorded(open_tracker, run_dir):
    tracker = open_tracker()
    folder = run_dir / "checkpoint_5"
    folder.mkdir()
    for name in ("rank_0.bin", "rank_1.bin"):
        (folder / name).write_text(name)
    tracker.record_checkpoint(5, folder, 40)

    assert {"rank_0.bin", "rank_1.bin"} == tracker.session.checkpoints[5].files.keys()
    assert str(folder) == tracker.get_recovery_checkpoint().checkpoint_path
    (folder / "rank_1.bin").write_text("rank_X.bin")
    with pytest.raises(NoUsableCheckpoint, match=r"the bytes of rank_1.bin differ"):
        tracker.get_recovery_checkpoint()


def test_a_file_digested_while_it_was_written_is_not_read_again(open_tracker, run_dir):
    tracker = open_tracker()
    written = write_atomically(run_dir / "checkpoint_5.pt", lambda file: file.write(b"weights"))
    checkpoint = tracker.record_checkpoint(5, written.path, 40, written=written)

    assert (written.digest, 7) == (checkpoint.digest, checkpoint.num_bytes)
    assert 5 == tracker.get_recovery_checkpoint().checkpoint_step


def test_a_large_checkpoint_is_digested_in_the_background(open_tracker, save_checkpoint, run_dir):
    tracker = open_tracker(settings=SMALL_IS_LARGE)
    save_checkpoint(tracker, 5)
    at_once = tracker.session.checkpoints[5]
    tracker.close()

    assert (None, len(b"weights of step 5")) == (at_once.digest, at_once.num_bytes)
    assert RunReader.open(run_dir).session().checkpoints[5].is_verifiable
    assert [5] == [event.step for event in events_of(run_dir, CheckpointHashed)]


def test_a_large_checkpoint_can_be_asked_for_at_once(open_tracker, save_checkpoint):
    tracker = open_tracker(settings=SMALL_IS_LARGE)
    save_checkpoint(tracker, 5)

    assert tracker.get_recovery_checkpoint().is_verifiable


def test_a_large_checkpoint_whose_digest_a_kill_cut_off_is_passed_over_and_left_where_it_is(
    open_tracker, save_checkpoint, left_by_a_kill, run_dir
):
    tracker = open_tracker()
    save_checkpoint(tracker, 5)
    tracker.close()
    tracker = open_tracker(settings=SMALL_IS_LARGE)
    save_checkpoint(tracker, 10)
    left = left_by_a_kill(run_dir)
    # A copy that does not keep the times, or another file.
    os.utime(left / "checkpoint_10.pt", ns=(1, 1))
    resumed = open_tracker(output_dir=left)

    assert 5 == resumed.get_recovery_checkpoint().checkpoint_step
    assert (left / "checkpoint_10.pt").exists()
    assert [5, 10] == list(resumed.session.checkpoints)


def test_a_large_checkpoint_alone_is_offered_without_its_digest_and_then_digested(
    open_tracker, save_checkpoint, left_by_a_kill, run_dir
):
    tracker = open_tracker(settings=SMALL_IS_LARGE)
    save_checkpoint(tracker, 10)
    left = left_by_a_kill(run_dir)
    resumed = open_tracker(output_dir=left)
    offered = resumed.get_recovery_checkpoint()
    resumed.close()

    assert (10, None) == (offered.checkpoint_step, offered.digest)
    assert RunReader.open(left).session().checkpoints[10].is_verifiable


@pytest.mark.parametrize("path", ["s3://bucket/checkpoint_5.pt", "not_written_yet.pt"])
def test_a_path_that_is_not_there_is_recorded_as_unverified(open_tracker, caplog, path):
    tracker = open_tracker()
    checkpoint = tracker.record_checkpoint(5, path, 40)
    offered = tracker.get_recovery_checkpoint()

    assert (None, None) == (checkpoint.num_bytes, checkpoint.digest)
    assert 5 == offered.checkpoint_step
    assert offered.checkpoint_path.endswith(path)
    assert [
        "it is recorded, but cannot be verified",
        "was never verified, but no better checkpoint was recorded",
    ] == [
        message.removeprefix(path).strip(".").removeprefix(" is not on this disk: ").strip()
        if "is not on this disk" in message
        else message.removeprefix(checkpoint.checkpoint_path).strip(". ")
        for message in caplog.messages
    ]


def test_an_unverified_checkpoint_is_not_offered_beside_an_intact_one(open_tracker, save_checkpoint):
    tracker = open_tracker()
    save_checkpoint(tracker, 5)
    tracker.record_checkpoint(10, "s3://bucket/checkpoint_10.pt", 80)

    assert 5 == tracker.get_recovery_checkpoint().checkpoint_step


def test_where_none_was_recorded_there_is_none_to_offer(open_tracker):
    assert open_tracker().get_recovery_checkpoint() is None


def test_damaged_checkpoints_are_passed_over_aloud_and_moved_aside(open_tracker, save_checkpoint, run_dir, caplog):
    tracker = open_tracker()
    paths = {step: save_checkpoint(tracker, step) for step in (1, 2, 3, 4)}
    paths[4].write_bytes(b"weig")
    paths[3].write_bytes(b"weights of step 7")
    paths[2].unlink()
    chosen = tracker.get_recovery_checkpoint()

    assert 1 == chosen.checkpoint_step
    assert [
        "checkpoint_4.pt cannot be used: it has 4 bytes instead of 17",
        "checkpoint_3.pt cannot be used: its bytes differ from those that were saved",
        "Skipping checkpoint_2.pt: it is missing.",
    ] == [message.partition(". Moved it to ")[0] for message in caplog.messages]
    assert ["checkpoint_3.pt", "checkpoint_4.pt"] == sorted(
        path.name for path in (run_dir / "progress" / "set_aside").iterdir()
    )
    assert [4, 3] == [event.step for event in events_of(run_dir, CheckpointSetAside)]
    assert [["checkpoint_4.pt", "checkpoint_3.pt", "checkpoint_2.pt"]] == [
        event.skipped for event in events_of(run_dir, ResumeChosen)
    ]
    # The missing one may come back from a copy.
    assert [1, 2] == list(tracker.session.checkpoints)
    assert [] == RunReader.open(run_dir).problems()


def test_where_all_are_damaged_the_error_names_each_and_nothing_is_moved(open_tracker, save_checkpoint, run_dir):
    tracker = open_tracker()
    for step in (1, 2):
        save_checkpoint(tracker, step).write_bytes(b"torn")

    with pytest.raises(NoUsableCheckpoint) as refused:
        tracker.get_recovery_checkpoint()
    assert [
        ("checkpoint_2.pt", "it has 4 bytes instead of 17"),
        ("checkpoint_1.pt", "it has 4 bytes instead of 17"),
    ] == (refused.value.refused)
    assert (run_dir / "checkpoint_1.pt").exists()


def test_recovery_never_starts_from_zero_after_the_only_checkpoint_was_quarantined(
    open_tracker, save_checkpoint, run_dir
):
    tracker = open_tracker()
    save_checkpoint(tracker, 1)
    save_checkpoint(tracker, 2).write_bytes(b"torn")
    tracker.get_recovery_checkpoint()
    (run_dir / "checkpoint_1.pt").unlink()
    tracker.close()

    with pytest.raises(NoUsableCheckpoint, match=r"checkpoint_2.pt: .* quarantined earlier"):
        open_tracker().get_recovery_checkpoint()


def test_a_run_that_was_moved_resumes(open_tracker, update, save_checkpoint, run_dir, tmp_path):
    tracker = open_tracker()
    update(tracker, 5)
    save_checkpoint(tracker, 5)
    tracker.close()
    moved = run_dir.rename(tmp_path / "elsewhere")
    checkpoint = open_tracker(output_dir=moved).get_recovery_checkpoint()

    assert str(moved / "checkpoint_5.pt") == checkpoint.checkpoint_path


def test_a_checkpoint_outside_the_run_is_never_moved(open_tracker, save_checkpoint, tmp_path):
    tracker = open_tracker()
    save_checkpoint(tracker, 1)
    outside = save_checkpoint(tracker, 2, path=tmp_path / "outside.pt")
    outside.write_bytes(b"torn")

    assert 1 == tracker.get_recovery_checkpoint().checkpoint_step
    assert b"torn" == outside.read_bytes()


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf, "long"])
def test_a_checkpoint_is_recorded_whatever_is_said_of_its_duration(
    open_tracker, save_checkpoint, run_dir, seconds, caplog
):
    save_checkpoint(open_tracker(), 5, seconds=seconds)

    assert [5] == list(RunReader.open(run_dir).session().checkpoints)
    assert "seconds must be" in caplog.text


def test_the_manifest_names_a_checkpoint_when_the_call_returns(open_tracker, save_checkpoint, read_json):
    tracker = open_tracker()
    save_checkpoint(tracker, 5)

    assert (["5"], 5) == (
        list(read_json(tracker.checkpoint_manifest)["checkpoints"]),
        read_json(tracker.checkpoint_manifest)["last_checkpoint_step"],
    )


def test_a_checkpoint_survives_a_power_loss_with_the_metrics_before_it(open_tracker, update, run_dir, tmp_path):
    run_dir.mkdir()
    disk = FaultyDisk(run_dir, tmp_path / "scratch")
    tracker = open_tracker(disk=disk)
    update(tracker, 5)
    (run_dir / "checkpoint_5.pt").write_bytes(b"weights")
    tracker.record_checkpoint(5, run_dir / "checkpoint_5.pt", 40)
    disk.after_power_loss(tmp_path / "left", "strict")
    resumed = open_tracker(output_dir=tmp_path / "left")

    assert 5 == resumed.get_recovery_checkpoint().checkpoint_step
    assert 5 == resumed.session.steps_completed


# Teacher answers.


def test_an_evaluation_is_kept_beside_the_checkpoint_of_its_step(open_tracker, update, save_checkpoint, read_json):
    tracker = open_tracker()
    update(tracker, 4)
    save_checkpoint(tracker, 4)
    tracker.record_evaluation(4, {"perplexity": 9, "f1": 0.5}, seconds=3)
    tracker.record_evaluation(6, {"perplexity": 8.0, "f1": 0.75})
    update(tracker, 8)
    # Recorded late, by an asynchronous save.
    save_checkpoint(tracker, 6)

    checkpoints = read_json(tracker.checkpoint_manifest)["checkpoints"]
    assert [{"perplexity": 9.0, "f1": 0.5}, {"perplexity": 8.0, "f1": 0.75}] == [
        checkpoints[step]["evaluation"] for step in ("4", "6")
    ]
    assert 3.0 == tracker.get_progress_summary()["goodput_seconds"]["evaluating"]


@pytest.mark.parametrize(
    ("results", "seconds", "expected"),
    [
        pytest.param([0.5], None, [], id="no names"),
        pytest.param({1: 0.5}, None, [{"1": 0.5}], id="a name that is no text"),
        pytest.param({"f1": "good"}, None, [], id="no number"),
        pytest.param({"f1": 0.5, "note": "good"}, None, [{"f1": 0.5}], id="a result that is no number"),
        pytest.param({"f1": 0.5}, -1, [{"f1": 0.5}], id="seconds"),
    ],
)
def test_of_an_evaluation_is_kept_what_can_be_kept(open_tracker, results, seconds, expected):
    tracker = open_tracker()
    tracker.record_evaluation(1, results, seconds)

    assert expected == [each.results for each in tracker.session.evaluations]


def test_an_evaluation_of_no_step_is_refused(open_tracker):
    tracker = open_tracker()

    with pytest.raises(InvalidMetric, match="step must be"):
        tracker.record_evaluation(-1, {"f1": 0.5})
    assert [] == tracker.session.evaluations


def test_an_answer_is_kept_and_given_across_attempts(open_tracker, run_dir):
    tracker = open_tracker()
    tracker.record_api_response("a1", {"text": "yes"}, cost=0.25)
    tracker.close()
    second = open_tracker()

    assert {"text": "yes"} == second.get_api_response("a1")
    assert second.get_api_response("b2") is None
    assert (1, 0.25) == (second.session.api_responses_saved, second.session.api_cost)


def test_answers_given_from_the_disk_are_counted(open_tracker, run_dir):
    tracker = open_tracker()
    tracker.record_api_response("a1", {"text": "yes"})
    for _ in range(3):
        tracker.get_api_response("a1")

    assert 3 == tracker.session.api_responses_recovered
    assert 3 == tracker.get_progress_summary()["api_responses_recovered"]
    assert [3] == [event.count for event in events_of(run_dir, AnswersRecovered)]


@pytest.mark.parametrize(
    "key, response, cost",
    [
        pytest.param("a", "text", 0.0, id="text"),
        pytest.param("a", None, 0.0, id="nothing"),
        pytest.param("a", ["list"], 0.0, id="list"),
        pytest.param("a", {"when": object()}, 0.0, id="object-inside"),
        pytest.param("a", {"half": "\ud800"}, 0.0, id="half-a-character"),
        pytest.param(7, {}, 0.0, id="key-that-is-no-text"),
        pytest.param("a", {}, math.nan, id="nan-cost"),
        pytest.param("a", {}, math.inf, id="infinite-cost"),
        pytest.param("a", {}, -1.0, id="negative-cost"),
        pytest.param("a", {}, "much", id="cost-that-is-no-number"),
    ],
)
def test_an_answer_that_cannot_be_kept_is_refused_and_leaves_nothing(open_tracker, run_dir, key, response, cost):
    tracker = open_tracker()
    with pytest.raises(InvalidMetric):
        tracker.record_api_response(key, response, cost)
    tracker.close()

    assert b"" == tracker.api_recovery_file.read_bytes()
    assert 0 == open_tracker().session.api_responses_saved


def test_a_full_disk_refuses_an_answer(open_tracker, run_dir, tmp_path):
    run_dir.mkdir()
    tracker = open_tracker()
    tracker.close()
    disk = FaultyDisk(run_dir, tmp_path / "scratch")
    tracker = open_tracker(disk=disk)
    disk._fails_at, disk._error, disk._lasts = disk.num_operations, errno.ENOSPC, True
    with pytest.raises(DiskFull, match="Free space there"):
        tracker.record_api_response("a1", {"text": "yes"})
    disk._fails_at = None

    assert tracker.get_api_response("a1") is None
    assert 0 == tracker.session.api_responses_saved
    tracker.record_api_response("a1", {"text": "yes"})
    assert {"text": "yes"} == tracker.get_api_response("a1")


# Attempts.


@pytest.mark.parametrize(
    "end, expected",
    [
        pytest.param(lambda tracker: tracker.close(), ("completed", None), id="completed"),
        pytest.param(lambda tracker: tracker.close("preempted"), ("preempted", None), id="preempted"),
        pytest.param(
            lambda tracker: tracker.close("raised", ValueError("no")), ("raised", "ValueError: no"), id="raised"
        ),
        pytest.param(
            lambda tracker: tracker.close("raised", OSError("na\udcefve.txt")),
            ("raised", "OSError: na\\udcefve.txt"),
            id="raised-with-half-a-character",
        ),
    ],
)
def test_an_attempt_ends_as_requested(open_tracker, update, run_dir, end, expected):
    tracker = open_tracker()
    update(tracker, 1)
    end(tracker)
    tracker.close("completed")

    assert [expected] == [(event.how, event.error) for event in events_of(run_dir, AttemptEnded)]
    attempt = RunReader.open(run_dir).session().attempts[0]
    assert expected == (attempt.how, attempt.error)


def test_an_attempt_that_was_killed_has_crashed(open_tracker, update, left_by_a_kill, run_dir, clock):
    update(open_tracker(), 1)
    left = left_by_a_kill(run_dir)
    clock.advance(60)
    tracker = open_tracker(output_dir=left)

    assert [("crashed", None), ("running", None)] == [
        (attempt.how, attempt.end) for attempt in tracker.session.attempts
    ]
    assert 60.0 == tracker.get_progress_summary()["goodput_seconds"]["down"]


def test_opening_again_in_the_same_process_takes_over(open_tracker, update, run_dir):
    first = open_tracker()
    update(first, 1)
    second = open_tracker()

    with pytest.raises(RunClosed, match="replaced by a newer one in this process"):
        update(first, 2)
    update(second, 2)
    first.close()
    assert ["replaced", "running"] == [attempt.how for attempt in second.session.attempts]
    assert [(1, 1), (2, 2)] == [(line.step, line.attempt) for line in RunReader.open(run_dir).history()]


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda tracker: tracker.update_metrics(1, 1.0, {}, 0.1, 1, 1), id="update_metrics"),
        pytest.param(lambda tracker: tracker.record_checkpoint(1, "a", 1), id="record_checkpoint"),
        pytest.param(lambda tracker: tracker.record_evaluation(1, {"f1": 0.5}), id="record_evaluation"),
        pytest.param(lambda tracker: tracker.record_api_response("a", {}), id="record_api_response"),
        pytest.param(lambda tracker: tracker.get_api_response("a"), id="get_api_response"),
        pytest.param(lambda tracker: tracker.record_connection_failure(1, "e"), id="record_connection_failure"),
        pytest.param(lambda tracker: tracker.record_pause(1.0), id="record_pause"),
        pytest.param(lambda tracker: tracker.get_recovery_checkpoint(), id="get_recovery_checkpoint"),
        pytest.param(lambda tracker: tracker.save(), id="save"),
    ],
)
def test_a_closed_tracker_takes_nothing_more(open_tracker, call):
    tracker = open_tracker()
    tracker.close()

    with pytest.raises(RunClosed, match="is closed; it accepts no more data"):
        call(tracker)


def test_a_closed_tracker_still_answers_what_it_knows(open_tracker, update):
    tracker = open_tracker()
    update(tracker, 1)
    tracker.close()

    assert 1 == tracker.get_progress_summary()["steps_completed"]
    assert 2.0 == tracker.get_loss_trend()["current_loss"]


def test_closing_lets_the_run_go(open_tracker, run_dir):
    tracker = open_tracker()
    held = holder_of(run_dir / "progress" / "writer.lock")
    tracker.close()

    assert os.getpid() == held.pid
    assert holder_of(run_dir / "progress" / "writer.lock") is None


def script(run_dir, body: str) -> list[str]:
    beginning = f"""
        import os, sys, threading, time
        from crashproof import ProgressTracker, TrackerSettings
        from crashproof.errors import CrashproofError, RunClosed
        quiet = TrackerSettings(has_heartbeat=False)
        def opened(**more):
            return ProgressTracker({str(run_dir / "progress")!r}, {{}}, 100, **more)
        def update(tracker, step):
            tracker.update_metrics(step, 1.0 / step, {{}}, 0.1, step, step)
    """
    return [sys.executable, "-W", "ignore", "-c", textwrap.dedent(beginning) + textwrap.dedent(body)]


def test_a_forked_child_cannot_write_and_does_not_hold_the_run(run_dir):
    ended = subprocess.run(
        script(
            run_dir,
            """
            tracker = opened()
            update(tracker, 1)
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                told = []
                for act in (lambda: update(tracker, 2), tracker.save, lambda: tracker.record_pause(1.0)):
                    try:
                        act()
                        told.append("kept")
                    except RunClosed as error:
                        told.append("belongs to the parent" in str(error))
                tracker.close()
                os.write(writing, repr(told).encode())
                time.sleep(60)
            print(os.read(reading, 1000).decode())
            update(tracker, 2)
            tracker.close()
            opened().close()   # The child lives, and the run is free.
            os.kill(child, 9)
            """,
        ),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert ("[True, True, True]\n", "", 0) == (ended.stdout, ended.stderr, ended.returncode)
    assert [1, 2] == [line.step for line in RunReader.open(run_dir).history()]
    assert ["completed", "completed"] == [attempt.how for attempt in RunReader.open(run_dir).session().attempts]


def test_a_child_forked_while_another_thread_was_writing_does_not_hang(run_dir):
    ended = subprocess.run(
        script(
            run_dir,
            """
            tracker = opened(settings=quiet)
            taken, done = threading.Event(), threading.Event()
            def hold():
                with tracker._guard.lock:
                    taken.set()
                    done.wait()
            threading.Thread(target=hold).start()
            taken.wait()
            child = os.fork()
            if child == 0:
                try:
                    update(tracker, 1)
                except RunClosed:
                    os._exit(7)
                os._exit(1)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            done.set()
            """,
        ),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert ("7\n", "") == (ended.stdout, ended.stderr)


@pytest.mark.parametrize(
    "body, expected",
    [
        pytest.param("tracker = opened(); update(tracker, 1)", "completed", id="forgets-to-close"),
        pytest.param("tracker = opened(); update(tracker, 1); raise ValueError('no')", "raised", id="raises"),
        pytest.param("tracker = opened(); update(tracker, 1); sys.exit(3)", "completed", id="exits"),
        pytest.param("tracker = opened(); update(tracker, 1); os._exit(3)", "running", id="ends-at-once"),
    ],
)
def test_a_program_that_does_not_close_ends_its_attempt_as_it_ended(run_dir, body, expected):
    subprocess.run(script(run_dir, body), capture_output=True, check=False, timeout=60)

    session = RunReader.open(run_dir).session()
    assert (expected, 1) == (session.attempts[0].how, session.steps_completed)
    assert [] == RunReader.open(run_dir).problems()


def test_what_was_acknowledged_survives_a_kill(run_dir, open_tracker):
    metrics = run_dir / "progress" / "metrics.jsonl"
    body = """
        tracker = opened()
        for step in range(1, 1_000_000):
            update(tracker, step)
            os.write(1, b"%d\\n" % step)
    """
    ended = run_and_kill(script(run_dir, body), when=lambda: metrics.exists() and metrics.stat().st_size > 20_000)
    acknowledged = int(ended.output.splitlines()[-1])
    tracker = open_tracker({})

    assert (True, -signal.SIGKILL) == (ended.was_killed, ended.return_code)
    assert tracker.session.steps_completed in (acknowledged, acknowledged + 1)
    assert "crashed" == tracker.session.attempts[0].how
    assert [] == RunReader.open(run_dir).problems()


# The replay check.


@pytest.fixture
def killed_at_ten(open_tracker, update, left_by_a_kill, run_dir):
    tracker = open_tracker()
    for step in range(1, 11):
        update(tracker, step, loss=1.0 / step)
    return left_by_a_kill(run_dir)


def test_the_replay_check_is_silent_where_every_loss_is_the_same(open_tracker, update, killed_at_ten, caplog):
    tracker = open_tracker(output_dir=killed_at_ten)
    for step in range(5, 13):
        update(tracker, step, loss=1.0 / step)

    assert [] == caplog.messages
    assert tracker.session.replay_differed_at is None
    assert 6 == tracker.session.steps_recomputed


def test_the_replay_check_reports_once_the_first_step_that_differs(open_tracker, update, killed_at_ten, caplog):
    tracker = open_tracker(output_dir=killed_at_ten)
    for step in range(5, 13):
        update(tracker, step, loss=1.0 / step if step < 7 else math.nextafter(1.0 / step, 2.0))

    assert 1 == len(caplog.messages)
    assert caplog.messages[0].startswith("Step 7 was recomputed with a different loss")
    assert [(7, 1 / 7)] == [(event.step, event.loss_before) for event in events_of(killed_at_ten, ReplayDiffered)]
    assert 7 == tracker.get_progress_summary()["replay_differed_at"]


def test_nan_that_comes_again_is_no_difference(open_tracker, update, left_by_a_kill, run_dir, caplog):
    update(open_tracker(), 1, loss=math.nan)
    tracker = open_tracker(output_dir=left_by_a_kill(run_dir))
    update(tracker, 1, loss=math.nan)

    assert tracker.session.replay_differed_at is None


def test_a_difference_to_nan_is_logged_and_recorded(open_tracker, update, left_by_a_kill, run_dir):
    update(open_tracker(), 1, loss=math.nan)
    left = left_by_a_kill(run_dir)
    tracker = open_tracker(output_dir=left)
    update(tracker, 1, loss=2.0)

    assert [(1, None, 2.0)] == [
        (event.step, event.loss_before, event.loss_now) for event in events_of(left, ReplayDiffered)
    ]
    assert 1 == tracker.session.replay_differed_at


def test_a_third_attempt_is_compared_with_the_newest_before_it(
    open_tracker, update, killed_at_ten, left_by_a_kill, caplog
):
    second = open_tracker(output_dir=killed_at_ten)
    for step in range(3, 9):
        update(second, step, loss=2.0 / step)
    caplog.clear()
    third = open_tracker(output_dir=left_by_a_kill(killed_at_ten))
    for step in range(2, 12):
        update(third, step, loss=1.0 / step if step < 3 else 2.0 / step)

    assert [] == caplog.messages
    # That the second differed stays known.
    assert 3 == third.session.replay_differed_at


# Many at once.


def test_threads_hammering_at_once_lose_nothing(open_tracker, run_dir, problems_of):
    tracker = open_tracker(settings=TrackerSettings(sync_interval_seconds=0.01, summary_interval_seconds=0.01))
    (run_dir / "checkpoint.pt").write_bytes(b"weights")
    told: list[BaseException] = []

    def hammer(number: int) -> None:
        try:
            for turn in range(25):
                tracker.update_metrics(25 * number + turn, 1.0, {"kd": 1.0}, 0.1, 1, 1)
                tracker.record_connection_failure(1, f"{number}/{turn}")
                tracker.record_api_response(f"{number}/{turn}", {"by": number}, cost=0.5)
                tracker.get_api_response(f"{number}/{turn}")
                tracker.record_pause(0.0)
                tracker.get_progress_summary()
                tracker.get_loss_trend()
            tracker.record_checkpoint(number, run_dir / "checkpoint.pt", 0)
            tracker.save()
        except BaseException as error:
            told.append(error)

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    live = tracker.session
    counts = (live.connection_failures, live.api_responses_saved, live.api_cost, live.api_responses_recovered)
    tracker.close()
    steps = Counter(line.step for line in RunReader.open(run_dir).all_updates())

    assert [] == told
    assert (150, 150, 75.0, 150) == counts
    assert Counter(range(150)) == steps
    assert msgspec.json.encode(RunReader.open(run_dir).session()) == msgspec.json.encode(tracker.session)
    assert [] == problems_of(run_dir)


def test_one_answer_is_found_by_all_threads_once_it_is_recorded(open_tracker):
    tracker = open_tracker()
    tracker.record_api_response("a", {"text": "yes"})
    found = []
    threads = [threading.Thread(target=lambda: found.append(tracker.get_api_response("a"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [{"text": "yes"}] * 8 == found


# Housekeeping.


def until(condition, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def test_the_progress_file_follows_a_living_run_by_itself(open_tracker, update, read_json):
    beating = TrackerSettings(sync_interval_seconds=0.005, summary_interval_seconds=0.005)
    tracker = open_tracker(settings=beating)
    update(tracker, 7)

    assert until(lambda: read_json(tracker.progress_file)["steps_completed"] == 7)


def test_the_session_file_is_replaced_once_it_is_old(open_tracker, update, read_json):
    beating = TrackerSettings(sync_interval_seconds=0.005, summary_interval_seconds=0.005, session_interval_lines=3)
    tracker = open_tracker(settings=beating)
    for step in range(1, 4):
        update(tracker, step)

    assert until(lambda: read_json(tracker.session_file)["steps_completed"] == 3)


def test_housekeeping_writes_what_waited_for_the_device(open_tracker, update, device, run_dir):
    beating = TrackerSettings(sync_interval_seconds=0.005, summary_interval_seconds=0.005)
    tracker = open_tracker(settings=beating)
    update(tracker, 1, device.tensor(2.5))
    device.finish()

    assert until(lambda: [1] == [line.step for line in RunReader.open(run_dir).history()])


def test_housekeeping_records_the_digest_of_a_large_checkpoint(open_tracker, save_checkpoint, run_dir):
    beating = TrackerSettings(sync_interval_seconds=0.005, summary_interval_seconds=0.005, large_checkpoint_bytes=1)
    tracker = open_tracker(settings=beating)
    save_checkpoint(tracker, 5)

    assert until(lambda: RunReader.open(run_dir).session().checkpoints[5].is_verifiable)


def test_without_heartbeat_nothing_happens_between_calls(open_tracker):
    open_tracker()

    assert not any(thread.name == "crashproof-heartbeat" for thread in threading.enumerate())


def test_a_closed_tracker_leaves_no_thread(open_tracker, save_checkpoint):
    before = set(threading.enumerate())
    tracker = open_tracker(settings=TrackerSettings(large_checkpoint_bytes=1))
    save_checkpoint(tracker, 5)
    tracker.close()
    gc.collect()

    assert not [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("crashproof")]


def test_a_full_disk_does_not_stop_training_and_says_what_to_free(
    open_tracker, update, run_dir, tmp_path, caplog, problems_of
):
    run_dir.mkdir()
    disk = FaultyDisk(run_dir, tmp_path / "scratch")
    tracker = open_tracker(disk=disk)
    update(tracker, 1)
    disk._fails_at, disk._error, disk._lasts = disk.num_operations, errno.ENOSPC, True
    for step in (2, 3):
        update(tracker, step)
    with pytest.raises(DiskFull, match="old checkpoints"):
        tracker.save()
    waiting = tracker.get_progress_summary()["lines_waiting"]
    disk._fails_at = None
    tracker.save()

    assert 2 == waiting
    assert any("Free space there" in message for message in caplog.messages)
    assert [1, 2, 3] == [line.step for line in RunReader.open(run_dir).history()]
    assert [] == problems_of(run_dir)


# Secrets.


def test_no_secret_ever_reaches_a_file(open_tracker, update, run_dir, caplog):
    caplog.set_level(logging.DEBUG)
    secrets = ["sk-proj-1234567890abcdef", "hunter2", "hf_abcdefghijkl", "pass:word"]
    config = {
        "teacher": {"api_key": secrets[0], "headers": {"X-Api-Key": secrets[1]}},
        "hf_token": secrets[2],
        "store": f"postgresql://{secrets[3]}@db/answers",
    }
    tracker = open_tracker(config)
    update(tracker, 1)
    tracker.record_connection_failure(1, f"401: bad key {secrets[0]}")
    tracker.close("raised", CrashproofError(f"Bearer {secrets[1]} at https://{secrets[3]}@api"))
    open_tracker(config | {"lr": 1}, on_config_change="continue").close()
    open_tracker({"other": 1}).close()
    written = b"".join(path.read_bytes() for path in run_dir.rglob("*") if path.is_file())

    assert [] == [secret for secret in secrets if secret.encode() in written or secret in caplog.text]
    assert b"(secret)" in written


def test_a_session_is_the_same_live_and_read_back(open_tracker, update, save_checkpoint, clock, run_dir):
    tracker = open_tracker()
    for step in range(1, 40):
        clock.advance(0.7)
        update(tracker, step, loss=math.nan if step % 9 == 0 else 3.0 / step)
        if step % 10 == 0:
            save_checkpoint(tracker, step, seconds=0.1)
            tracker.record_evaluation(step, {"nonfinite": math.nan, "a.b": math.inf, "f1": 0.1 * step}, seconds=0.1)
            save_checkpoint(tracker, step, path=run_dir / "best.pt")
            tracker.record_pause(0.2)
            tracker.record_api_response(f"{step}", {"nonfinite": "a word of the user's"}, cost=0.1)

    assert repr(tracker.session) == repr(RunReader.open(run_dir).session())
    tracker.save()
    assert repr(tracker.session) == repr(RunReader.open(run_dir).session())


def test_a_training_goes_on_where_no_thread_can_be_started(open_tracker, update, run_dir, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    tracker = open_tracker(settings=TrackerSettings(large_checkpoint_bytes=1))
    for step in range(1, 4):
        update(tracker, step)
        path = run_dir / f"checkpoint_{step}"
        path.mkdir()
        (path / "weights").write_text("weights")
        tracker.record_checkpoint(step, path, step)
    found = tracker.get_recovery_checkpoint()
    tracker.close()

    assert found is not None
    assert 3 == found.checkpoint_step
    assert found.digest is not None

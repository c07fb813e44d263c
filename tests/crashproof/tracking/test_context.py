from __future__ import annotations

import errno
import math

import numpy as np
import pytest
import torch

from crashproof import (
    RunReader,
    TrackerSettings,
    TrainingProgressContext,
    calculate_metrics_from_step,
    get_recovery_checkpoint,
    setup_progress_tracking,
    training_progress_context,
    write_atomically,
)
from crashproof.disk.lock import holder_of
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import ConfigChanged, DiskFull, InvalidMetric, NewerFormat, NoUsableCheckpoint, RunInUse
from crashproof.records.lines.checksummed_line import add_checksum
from crashproof.testing import FaultyDisk

CONFIG = {"train": {"lr": 0.1}}
QUIET = TrackerSettings(has_heartbeat=False)


@pytest.fixture
def context(run_dir, clock):
    return TrainingProgressContext(CONFIG, run_dir, 10, settings=QUIET, clock=clock)


def attempts_of(run_dir) -> list[tuple[str, str | None]]:
    return [(attempt.how, attempt.error) for attempt in RunReader.open(run_dir).session().attempts]


def test_a_context_around_a_loop_keeps_its_run(context, update, run_dir, problems_of):
    with context as progress:
        for step in range(1, 11):
            update(progress, step)

    assert list(range(1, 11)) == [line.step for line in RunReader.open(run_dir).history()]
    assert [("completed", None)] == attempts_of(run_dir)
    assert 100.0 == context.get_progress_summary()["progress_pct"]
    assert [] == problems_of(run_dir)


def test_an_exception_propagates_and_the_attempt_ends_as_raised(context, update, run_dir, problems_of):
    with pytest.raises(ZeroDivisionError, match=r"^the loss$"), context as progress:
        update(progress, 1)
        raise ZeroDivisionError("the loss")

    assert [("raised", "ZeroDivisionError: the loss")] == attempts_of(run_dir)
    assert [] == problems_of(run_dir)


def test_an_interrupt_propagates_too(context, run_dir):
    with pytest.raises(KeyboardInterrupt), context:
        raise KeyboardInterrupt

    assert [("raised", "KeyboardInterrupt: ")] == attempts_of(run_dir)


def test_a_loop_that_was_asked_to_stop_ends_as_preempted(context, run_dir):
    with context as progress:
        progress.end_as("preempted")

    assert [("preempted", None)] == attempts_of(run_dir)


def test_a_loop_that_exits_after_it_was_asked_to_stop_ends_as_preempted_too(context, run_dir):
    with pytest.raises(SystemExit), context as progress:
        progress.end_as("preempted")
        raise SystemExit(75)

    assert "preempted" == attempts_of(run_dir)[0][0]


def test_what_ends_the_training_is_raised_although_its_end_cannot_be_recorded(run_dir, update, tmp_path, caplog):
    run_dir.mkdir()
    disk = FaultyDisk(run_dir, tmp_path / "scratch")
    with (
        pytest.raises(ValueError, match="bad batch"),
        training_progress_context(CONFIG, run_dir, 10, settings=QUIET, disk=disk) as progress,
    ):
        disk.begin_failing(errno.ENOSPC)
        update(progress, 1)
        raise ValueError("bad batch")

    num_lost = progress.get_progress_summary()["lines_waiting"]
    assert num_lost >= 2
    assert holder_of(RunFolder.under(run_dir).lock) is None
    assert f"could not be recorded, and {num_lost} records are lost: The disk is full" in caplog.text


def test_an_orderly_end_that_cannot_be_recorded_is_raised(run_dir, tmp_path):
    run_dir.mkdir()
    disk = FaultyDisk(run_dir, tmp_path / "scratch")
    with (
        pytest.raises(DiskFull),
        training_progress_context(CONFIG, run_dir, 10, settings=QUIET, disk=disk),
    ):
        disk.begin_failing(errno.ENOSPC)


def test_a_context_that_was_never_entered_says_so_and_touches_no_disk(context, run_dir):
    assert {"status": "not_initialized"} == context.get_progress_summary()
    assert context.tracker is None
    assert not run_dir.exists()


def test_off_the_main_process_nothing_happens_not_even_a_folder(run_dir, update):
    with training_progress_context(CONFIG, run_dir, 10, is_main_process=False) as progress:
        update(progress, 1)
        progress.record_checkpoint(1, run_dir / "checkpoint_1.pt", 8, is_best=True)
        progress.record_evaluation(1, {"perplexity": 9.0}, 0.5)
        progress.record_api_response("a", {"text": "yes"}, 0.1)
        progress.record_connection_failure(1, "refused")
        progress.end_as("preempted")
        inside = (progress.tracker, progress.get_progress_summary())

    assert (None, {"status": "not_initialized"}) == inside
    assert not run_dir.exists()


def test_off_the_main_process_an_exception_propagates(run_dir):
    with pytest.raises(ValueError, match="no"), training_progress_context(CONFIG, run_dir, 10, is_main_process=False):
        raise ValueError("no")

    assert not run_dir.exists()


def test_the_tracker_is_there_only_inside(context):
    with context as progress:
        inside = progress.tracker

    assert inside is not None
    assert context.tracker is None


def test_all_that_is_reported_reaches_the_tracker(context, update, run_dir, clock):
    with context as progress:
        clock.advance(2.0)
        update(progress, 1)
        progress.record_api_response("a", {"text": "yes"}, 0.5)
        progress.record_connection_failure(3, ConnectionError("refused"))
        summary = progress.get_progress_summary()

    expected = {
        "steps_completed": 1,
        "api_responses_saved": 1,
        "api_cost": 0.5,
        "connection_failures": 1,
        "connection_retries": 3,
        "throughput_samples_per_sec": 4.0,
    }
    assert expected == {name: summary[name] for name in expected}


def test_the_remaining_time_is_known_only_on_the_main_process(context, update, clock, run_dir):
    with context as progress:
        for step in range(1, 6):
            clock.advance(3.0)
            update(progress, step)
        remaining = progress.get_remaining_seconds()
    with training_progress_context(CONFIG, run_dir, 10, is_main_process=False) as elsewhere:
        off_the_main_process = elsewhere.get_remaining_seconds()

    assert (pytest.approx(15.0, rel=0.01), None) == (remaining, off_the_main_process)


@pytest.mark.parametrize(
    "is_best, expected",
    [
        pytest.param(False, ["periodic"], id="periodic"),
        pytest.param(True, ["periodic", "best_loss"], id="best"),
        pytest.param(None, ["periodic", "best_loss"], id="best by its loss"),
    ],
)
def test_the_best_checkpoint_is_tagged(context, update, run_dir, is_best, expected):
    with context as progress:
        update(progress, 1)
        (run_dir / "checkpoint_1.pt").write_bytes(b"weights")
        progress.record_checkpoint(1, run_dir / "checkpoint_1.pt", 8, is_best=is_best)

    assert expected == RunReader.open(run_dir).session().checkpoints[1].recovery_tags


def test_an_evaluation_is_passed_on(context, run_dir):
    with context as progress:
        progress.record_evaluation(1, {"perplexity": 9.0}, 0.5)

    session = RunReader.open(run_dir).session()
    assert ([{"perplexity": 9.0}], 0.5) == (
        [each.results for each in session.evaluations],
        session.goodput.evaluating,
    )


def test_the_digest_of_an_atomic_write_is_passed_on(context, run_dir):
    with context as progress:
        written = write_atomically(run_dir / "checkpoint_1.pt", lambda file: file.write(b"weights"))
        progress.record_checkpoint(1, written.path, 8, written=written, seconds=2.5)

    session = RunReader.open(run_dir).session()
    assert (written.digest, 2.5) == (session.checkpoints[1].digest, session.goodput.checkpointing)


def test_a_context_may_be_entered_again(context, update, run_dir):
    for step in (1, 2):
        with context as progress:
            update(progress, step)

    assert [("completed", None)] * 2 == attempts_of(run_dir)
    assert 2 == context.get_progress_summary()["steps_completed"]


def test_the_arguments_reach_the_tracker(context, run_dir, update):
    with context as progress:
        update(progress, 1)
    strict = TrainingProgressContext({"train": {"lr": 0.2}}, run_dir, 10, on_config_change="error", settings=QUIET)
    anew = TrainingProgressContext(CONFIG, run_dir, 10, fresh=True, settings=QUIET)

    with pytest.raises(ConfigChanged), strict:
        pass
    with anew as progress:
        assert 0 == progress.get_progress_summary()["steps_completed"]


def test_a_context_is_set_up_without_being_entered(run_dir):
    context = setup_progress_tracking(CONFIG, run_dir, 10)
    set_up_only = run_dir.exists()
    with context as progress:
        is_tracking = progress.tracker is not None

    assert (False, True) == (set_up_only, is_tracking)


def test_a_context_may_be_set_up_off_the_main_process(run_dir):
    with setup_progress_tracking(CONFIG, run_dir, 10, is_main_process=False) as progress:
        assert progress.tracker is None

    assert not run_dir.exists()


def test_a_folder_without_a_run_has_nothing_to_recover_and_stays_as_it_is(run_dir):
    assert get_recovery_checkpoint(run_dir) is None
    assert not run_dir.exists()


def test_a_run_without_checkpoints_has_nothing_to_recover(context, update, run_dir):
    with context as progress:
        update(progress, 1)

    assert get_recovery_checkpoint(run_dir) is None


@pytest.fixture
def saved(context, run_dir):
    with context as progress:
        for step in (1, 2):
            (run_dir / f"checkpoint_{step}.pt").write_bytes(b"weights")
            progress.record_checkpoint(step, run_dir / f"checkpoint_{step}.pt", 8 * step)
    return run_dir


def test_the_newest_intact_checkpoint_is_recovered_with_its_place_in_the_data(saved):
    assert (saved / "checkpoint_2.pt", 16) == get_recovery_checkpoint(saved)
    assert get_recovery_checkpoint(str(saved))[0].is_absolute()


def test_recovering_passes_over_damage_aloud_and_changes_nothing(saved, caplog):
    (saved / "checkpoint_2.pt").write_bytes(b"torn")
    before = {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    recovered = get_recovery_checkpoint(saved)

    assert (saved / "checkpoint_1.pt", 8) == recovered
    assert ["Skipping checkpoint_2.pt: it has 4 bytes instead of 7."] == caplog.messages
    assert before == {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()}


def test_where_all_are_damaged_recovering_is_an_error(saved):
    for path in saved.glob("*.pt"):
        path.unlink()

    with pytest.raises(NoUsableCheckpoint, match=r"checkpoint_2.pt: it is missing; checkpoint_1.pt: it is missing"):
        get_recovery_checkpoint(saved)


@pytest.mark.parametrize(
    "config, expected",
    [
        pytest.param(CONFIG, True, id="same"),
        pytest.param(CONFIG | {"progress": {"interval": 9}}, True, id="same-where-it-matters"),
        pytest.param({"train": {"lr": 0.2}}, False, id="another"),
        pytest.param(None, True, id="not-asked"),
    ],
)
def test_a_run_of_another_config_has_no_checkpoint_to_offer(saved, config, expected):
    assert expected is (get_recovery_checkpoint(saved, config) is not None)


def test_a_run_of_a_newer_version_is_refused(saved):
    (saved / "progress" / "session.json").write_bytes(add_checksum(b'{"v":3}'))

    with pytest.raises(NewerFormat):
        get_recovery_checkpoint(saved)


def test_recovering_needs_no_lock(saved, run_dir):
    with training_progress_context(CONFIG, run_dir, 10, settings=QUIET):
        assert get_recovery_checkpoint(saved) is not None


def test_an_error_at_the_entrance_leaves_nothing_half_open(context, run_dir):
    (run_dir / "progress").mkdir(parents=True)
    (run_dir / "progress" / "session.json").write_bytes(add_checksum(b'{"v":3}'))
    with pytest.raises(NewerFormat), context:
        pass

    assert context.tracker is None
    assert {"status": "not_initialized"} == context.get_progress_summary()
    (run_dir / "progress" / "session.json").unlink()
    try:
        with context:
            pass
    except RunInUse:
        pytest.fail("the lock was not let go")


class Scheduler:
    def get_last_lr(self):
        return [0.25, 0.5]


@pytest.mark.parametrize(
    "arguments, expected",
    [
        pytest.param((2.5,), (2.5, {"total": 2.5}, 0.0), id="loss-alone"),
        pytest.param((2.5, {"kd": 2, "ce": 0.5}), (2.5, {"kd": 2.0, "ce": 0.5}, 0.0), id="components"),
        pytest.param((2.5, {}), (2.5, {"total": 2.5}, 0.0), id="no-components"),
        pytest.param((2.5, None, Scheduler()), (2.5, {"total": 2.5}, 0.25), id="scheduler"),
        pytest.param((torch.tensor(2.5), {"kd": torch.tensor(2.0)}), (2.5, {"kd": 2.0}, 0.0), id="tensors"),
        pytest.param((np.float32(2.5),), (2.5, {"total": 2.5}, 0.0), id="numpy"),
        pytest.param((math.inf,), (math.inf, {"total": math.inf}, 0.0), id="infinite"),
    ],
)
def test_a_step_becomes_plain_numbers(arguments, expected):
    found = calculate_metrics_from_step(*arguments)

    assert expected == found
    assert {float} == {type(number) for number in (found[0], found[2], *found[1].values())}


def test_the_learning_rate_of_a_real_scheduler_is_read():
    weights = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weights], lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    optimizer.step()
    scheduler.step()

    assert 0.25 == calculate_metrics_from_step(torch.tensor(1.0), scheduler=scheduler)[2]


@pytest.mark.parametrize("loss", [pytest.param(None, id="none"), pytest.param(torch.zeros(2), id="two")])
def test_a_loss_that_is_not_one_number_is_refused(loss):
    with pytest.raises(InvalidMetric, match=r"^loss must be one number"):
        calculate_metrics_from_step(loss)


def test_a_component_that_is_no_number_is_left_out():
    assert (1.0, {"kd": 0.5, "parts/ce": 0.25}, 0.0) == calculate_metrics_from_step(
        1.0, {"kd": 0.5, "note": "high", "parts": {"ce": 0.25}}
    )

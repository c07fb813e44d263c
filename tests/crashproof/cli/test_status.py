from __future__ import annotations

import json
import time

import pytest

from crashproof import SYSTEM_CLOCK
from crashproof.cli.exit_codes import EXIT_CODES, exit_code_for
from crashproof.cli.status import local_time
from crashproof.records.bad_steps import DataWindow
from crashproof.records.rank_times import RankTime
from crashproof.records.states import BadStepAction
from crashproof.rules.rank_times.comparison import compare_ranks
from crashproof.testing import FakeClock


def test_a_complete_run_is_healthy(crashproof, train, run_dir):
    train(run_dir, range(1, 11), total_steps=10)

    said = crashproof("status", run_dir)

    assert 0 == said.code
    assert said.output.startswith(f"{run_dir}: complete: all steps are done\n")
    assert "nothing remains" in said.output


def test_a_live_run_is_healthy_with_its_estimated_finish(crashproof, open_tracker, update, run_dir):
    now = FakeClock(time.time() - 60)
    tracker = open_tracker(clock=now)
    for step in range(1, 31):
        now.advance(2)
        update(tracker, step, loss=5.0 - step / 10)

    said = crashproof("status", run_dir)

    assert 0 == said.code
    assert "running as process" in said.lines[0]
    assert "usually one every 2 s; stalled after 2 min 0 s without one" in said.output
    assert "2 min 20 s remaining" in said.output
    assert ", done " in said.output
    assert max(map(len, said.lines[1:])) <= 80
    assert ": improving" in said.output
    assert "would begin at step 0" in said.output
    assert "goodput 9" in said.output


def test_the_slowest_rank_is_named(crashproof, open_tracker, update, run_dir):
    tracker = open_tracker(clock=SYSTEM_CLOCK)
    update(tracker, 30)
    ranks = [RankTime(rank=rank, host=f"node{rank}", seconds=0.1 + rank / 50, most_seconds=1.0) for rank in range(4)]
    tracker.record_rank_times(compare_ranks(ranks, step=30, num_steps=25, step_seconds=0.2))

    said = crashproof("status", run_dir)
    as_json = json.loads(crashproof("status", run_dir, "--json").output)

    assert "  ranks       4; the slowest is rank 3 on node3: 1.3 times the median" in said.lines
    assert "              0.16 s of its own work in a step of 0.2 s (step 30)" in said.lines
    assert (3, "node3") == (as_json["rank_times"]["slowest"][0]["rank"], as_json["rank_times"]["slowest"][0]["host"])


def test_bad_steps_and_what_they_cost_are_told(crashproof, open_tracker, update, run_dir):
    tracker = open_tracker(clock=SYSTEM_CLOCK)
    for step in range(1, 21):
        update(tracker, step, loss=2.0)
    update(tracker, 21, loss=50.0)
    finding = tracker.check_step().finding
    tracker.record_bad_step(finding, BadStepAction.SKIPPED_DATA)
    tracker.leave_data_out(finding.data, 21)

    said = crashproof("status", run_dir)
    as_json = json.loads(crashproof("status", run_dir, "--json").output)

    assert (
        "  bad steps   2 found, 1 rollback, 8 samples left out; the newest: step 21 has a loss of 50; the 19 healthy "
        "losses before it are about 2, and up to 3 would have passed (samples 160 to 167 of the order); training "
        "went back to a checkpoint, and leaves these samples out"
    ) in said.lines
    assert (2, 1, 8) == (as_json["bad_steps_found"], as_json["rollbacks"], as_json["samples_left_out"])


def test_samples_that_are_left_out_from_the_start_are_told(crashproof, open_tracker, update, run_dir):
    tracker = open_tracker(clock=SYSTEM_CLOCK)
    update(tracker, 1)
    tracker.leave_data_out([DataWindow(8, 9)])

    assert "  bad steps   0 found, 1 sample left out" in crashproof("status", run_dir).lines


def test_a_stalled_run_is_an_alarm(crashproof, open_tracker, update, run_dir):
    tracker = open_tracker(clock=FakeClock(time.time() - 7200))
    for step in (1, 2, 3):
        update(tracker, step)

    said = crashproof("status", run_dir)

    assert 3 == said.code
    assert "stalled as process" in said.output


@pytest.mark.parametrize(
    "losses, health",
    [
        pytest.param([1.0 + 0.1 * step for step in range(40)], "diverging", id="rising"),
        pytest.param([2.0] * 20 + [float("nan")], "non_finite", id="nan"),
    ],
)
def test_a_loss_that_went_wrong_is_an_alarm(crashproof, open_tracker, update, run_dir, losses, health):
    tracker = open_tracker(clock=SYSTEM_CLOCK)
    for step, loss in enumerate(losses, start=1):
        update(tracker, step, loss=loss)

    said = crashproof("status", run_dir, "--json")

    assert (4, health) == (said.code, json.loads(said.output)["health"])


def test_saves_that_keep_failing_are_an_alarm(crashproof, open_tracker, update, save_checkpoint, run_dir):
    tracker = open_tracker(clock=SYSTEM_CLOCK)
    update(tracker, 10)
    save_checkpoint(tracker, 10)
    said = []
    for step in (20, 30):
        update(tracker, step)
        tracker.record_checkpoint_failure(step, "no quota is left")
        said.append(crashproof("status", run_dir))
    screen = crashproof("watch", run_dir, "--once")

    assert [0, 8] == [each.code for each in said]
    assert "  saves       The newest save has failed, at step 20: no quota is left; the newest" in said[0].output
    assert "  saves       2 saves in a row have failed, the newest at step 30: no quota" in said[1].output
    assert said[1].lines[0].startswith(f"{run_dir}: saves failing as process")
    assert "the newest checkpoint is 20 steps old" in said[1].output
    assert 8 == screen.code
    assert "newest checkpoint at step 10 (1 in total); 2 failed since: no quota" in screen.output
    assert "the save at step 30 failed: no quota is left" in screen.output
    assert 2 == json.loads(crashproof("status", run_dir, "--json").output)["failed_saves"]["in_a_row"]


def test_a_killed_run_is_an_alarm(crashproof, open_tracker, update, run_dir, left_by_a_kill):
    update(open_tracker(), 1)

    said = crashproof("status", left_by_a_kill(run_dir))

    assert 5 == said.code
    assert "crashed: the process exited without recording a shutdown" in said.output


@pytest.mark.parametrize("how, code", [("raised", 5), ("preempted", 6), ("replaced", 6)])
def test_how_an_attempt_ended_is_an_exit_code(crashproof, open_tracker, update, run_dir, how, code):
    tracker = open_tracker()
    update(tracker, 1)
    tracker.close(how)

    assert code == crashproof("status", run_dir).code
    assert code == crashproof("status", run_dir, "--json").code


def test_what_was_adopted_has_not_started(crashproof, run_dir):
    torch = pytest.importorskip("torch")
    run_dir.mkdir()
    torch.save({"step": 3}, run_dir / "checkpoint_3.pt")
    assert 0 == crashproof("adopt", run_dir).code

    said = crashproof("status", run_dir)

    assert 7 == said.code
    assert "would resume at step 3" in said.output


def test_no_state_looks_like_an_error_or_is_left_out():
    assert 2 not in EXIT_CODES.values()
    assert 7 == exit_code_for("a word of a later version")


def test_the_help_lists_the_exit_codes_and_an_example(crashproof):
    said = crashproof("status", "--help")

    for words in ("0 running", "3 stalled", "5 crashed", "7 not started", "Example: crashproof status"):
        assert words in " ".join(said.output.replace("│", " ").split())


def test_the_cost_of_a_run_is_printed(crashproof, open_tracker, update, run_dir):
    tracker = open_tracker()
    update(tracker, 1)
    tracker.record_api_response("p", {"text": "a"}, 1.25)
    tracker.close()

    assert "cost        0 s trained, $1.25 to teachers" in crashproof("status", run_dir).output


def test_active_alerts_are_named(crashproof, open_tracker, update, run_dir):
    tracker = open_tracker(clock=SYSTEM_CLOCK)
    for step in range(1, 4):
        update(tracker, step, loss=float("nan"))
    tracker.close()

    assert "alert       non finite" in crashproof("status", run_dir).output


@pytest.mark.parametrize("moment", [None, 1e300, float("inf"), float("nan")])
def test_an_impossible_time_is_printed_in_words(moment):
    assert local_time(moment, 0.0) in ("unknown", "beyond any calendar")


def test_a_moment_of_another_year_has_its_year():
    assert "2001" in local_time(1_000_000_000.0, 1_700_000_000.0)

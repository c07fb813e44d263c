from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from rich.cells import cell_len

from crashproof import SYSTEM_CLOCK
from crashproof.cli.screen import event_in_words, plain_line, screen_lines
from crashproof.cli.watch import _Watched
from crashproof.disk.run_folder import RunFolder
from crashproof.records.rank_times import RankTime
from crashproof.rules.rank_times.comparison import compare_ranks
from crashproof.testing import FakeClock

PROGRAM = "from crashproof.cli import main; main()"


@pytest.fixture
def live(open_tracker, update, run_dir, save_checkpoint):
    """A live run of 40 steps with a spike, a NaN, a checkpoint, an evaluation, an answer and a failure."""
    tracker = open_tracker(clock=SYSTEM_CLOCK, total_steps=100)
    for step in range(1, 41):
        update(tracker, step, loss={20: 50.0, 30: float("nan")}.get(step, 5.0 - step / 10))
    save_checkpoint(tracker, 40)
    tracker.record_evaluation(40, {"perplexity": 7.5})
    tracker.record_api_response("p", {"text": "a"}, 1.5)
    tracker.record_connection_failure(3, "no route")
    return run_dir


def test_one_screen_has_all_at_80_by_24_without_colour(crashproof, live, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("LINES", "24")

    said = crashproof("watch", live, "--once")

    assert 0 == said.code
    assert len(said.lines) <= 24
    assert max(map(cell_len, said.lines)) <= 80
    assert "\x1b" not in said.output
    for words in ("RUNNING  process", "40.0 %  40 of 100", "loss   1, average", "kd 1.5", "learning rate 0.001"):
        assert words in said.output
    for words in (
        "goodput",
        "newest checkpoint at step 40 (1 in total)",
        "perplexity 7.5",
        "$1.50 for 1 answers",
        "NaN, inf",
        "!",
    ):
        assert words in said.output
    assert "checkpoint at step 40" in said.output
    assert "teacher request failed after 3 retries: no route" in said.output


def test_a_slow_rank_is_named(crashproof, open_tracker, update, run_dir):
    tracker = open_tracker(clock=SYSTEM_CLOCK)
    update(tracker, 30)
    ranks = [RankTime(rank=rank, host="node", seconds=0.1 + rank / 10, most_seconds=1.0) for rank in range(2)]
    tracker.record_rank_times(compare_ranks(ranks, step=30, num_steps=25, step_seconds=0.2))

    assert "ranks  rank 1 on node is slow (2.0 times the median)" in crashproof("watch", run_dir, "--once").lines


@pytest.mark.parametrize("width, height", [(80, 24), (40, 12), (60, 8), (200, 60), (20, 3)])
@pytest.mark.parametrize("is_unicode", [True, False])
def test_a_screen_keeps_its_size(live, width, height, is_unicode):
    seen = _Watched(str(live), RunFolder.under(live)).refresh()

    lines = screen_lines(seen, width=width, height=height, is_unicode=is_unicode)

    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= width
    assert is_unicode or all(map(str.isascii, lines))


def test_json_once_is_the_summary(crashproof, live):
    said = crashproof("watch", live, "--once", "--json")

    assert (0, 40) == (said.code, json.loads(said.output)["steps_completed"])


def test_a_run_that_has_ended_ends_it_with_the_exit_code_of_status(crashproof, train, run_dir):
    train(run_dir, range(1, 4))

    said = crashproof("watch", run_dir)

    assert (6, 1) == (said.code, len(said.lines))
    assert "ended early, step 3 of 100" in said.output


def test_where_it_is_no_terminal_a_line_follows_the_other(run_dir, open_tracker, update):
    tracker = open_tracker(clock=SYSTEM_CLOCK)
    update(tracker, 1)
    command = [sys.executable, "-c", PROGRAM, "watch", str(run_dir), "--seconds", "0.1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None

    first = process.stdout.readline()
    update(tracker, 2)
    tracker.close("preempted")
    rest = process.stdout.read()

    assert "running, step 1 of 100" in first
    assert "preempted, step 2 of 100" in rest.splitlines()[-1]
    assert 6 == process.wait()
    process.stdout.close()


def test_it_waits_for_a_folder_to_become_a_run(crashproof, run_dir, open_tracker, update):
    def begin() -> None:
        time.sleep(0.3)
        tracker = open_tracker(total_steps=1)
        update(tracker, 1)
        tracker.close()

    beginning = threading.Thread(target=begin)
    beginning.start()
    said = crashproof("watch", run_dir, "--wait", "--seconds", "0.1")
    beginning.join()

    assert (0, f"Waiting for a run in {run_dir}.") == (said.code, said.lines[0])
    assert "complete" in said.lines[-1]


def test_ctrl_c_ends_it_quietly(live):
    command = [sys.executable, "-c", PROGRAM, "watch", str(live), "--seconds", "0.1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()

    process.send_signal(2)
    _, errors = process.communicate()

    assert (0, "") == (process.returncode, errors)


def test_refreshes_read_on_through_a_kill_and_a_restart(
    open_tracker, update, save_checkpoint, run_dir, left_by_a_kill
):
    tracker = open_tracker(clock=SYSTEM_CLOCK)
    for step in range(1, 9):
        update(tracker, step)
    run = left_by_a_kill(run_dir)
    watched = _Watched("run", RunFolder.under(run))
    killed = watched.refresh()

    again = open_tracker(output_dir=run, clock=SYSTEM_CLOCK)
    for step in range(6, 12):
        update(again, step)
    restarted = watched.refresh()

    assert ("crashed", 8) == (killed.summary.health, killed.summary.steps_completed)
    assert ("running", 11, 2) == (
        restarted.summary.health,
        restarted.summary.steps_completed,
        restarted.summary.attempt,
    )
    assert [f"attempt 2 started: process {os.getpid()} on {restarted.summary.attempt_host}"] == [
        words for _, words in restarted.events if words.startswith("attempt 2")
    ]


def test_only_what_is_new_is_read_again(open_tracker, update, run_dir, monkeypatch):
    from crashproof.cli import watch as module

    tracker = open_tracker(clock=SYSTEM_CLOCK)
    update(tracker, 1)
    watched = _Watched("run", RunFolder.under(run_dir))
    watched.refresh()
    starts = []
    scan = module.scan
    monkeypatch.setattr(module, "scan", lambda path, *, start=0: (starts.append(start), scan(path, start=start))[1])

    tracker.record_pause(3.0)
    seen = watched.refresh()

    assert "paused for 3 s" == seen.events[-1][1]
    assert [True] == [start > 0 for start in starts]


def test_a_folder_that_goes_away_leaves_what_was_seen_with_a_note(train, run_dir):
    train(run_dir, range(1, 4))
    watched = _Watched("run", RunFolder.under(run_dir))
    watched.refresh()
    run_dir.rename(run_dir.with_name("moved"))

    seen = watched.refresh()

    assert 3 == seen.summary.steps_completed
    assert any("refresh failed" in line for line in screen_lines(seen, width=80, height=24, is_unicode=True))


def test_another_session_in_the_folder_is_seen(open_tracker, update, run_dir):
    tracker = open_tracker({"lr": 1})
    for step in range(1, 9):
        update(tracker, step)
    tracker.close()
    watched = _Watched("run", RunFolder.under(run_dir))
    before = watched.refresh()

    update(open_tracker({"lr": 2}), 1)
    after = watched.refresh()

    assert (8, 1) == (before.summary.steps_completed, after.summary.steps_completed)
    assert before.summary.session_id != after.summary.session_id
    assert 1 == sum(point.num_updates for point in after.points)
    assert 1 == sum("started" in words and "session" in words for _, words in after.events)


def test_a_clock_that_went_back_says_so(open_tracker, update, run_dir):
    tracker = open_tracker(clock=FakeClock(time.time() + 9000))
    update(tracker, 1)

    seen = _Watched("run", RunFolder.under(run_dir)).refresh()

    assert "a clock is wrong" in plain_line(seen)
    assert any("last update 0 s ago" in line for line in screen_lines(seen, width=80, height=24, is_unicode=True))


def test_events_are_described(run_dir, live):
    from crashproof import RunReader

    words = [event_in_words(event) for event in RunReader.open(live).events()]

    assert {"checkpoint", "evaluation", "teacher", "session", "attempt"} <= {
        each.split()[0] for each in words if each
    }

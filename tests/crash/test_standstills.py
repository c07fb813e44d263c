"""A process that was stopped, a machine that was suspended, a clock that was set: none of it is training time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from crashproof import ProgressTracker, RunReader
from crashproof.records.events import Paused
from crashproof.rules.stopwatch import Tick
from crashproof.rules.summary import goodput_seconds
from crashproof.testing import FakeClock
from crashproof.tracking.metrics import recorder

PROGRAM = """
import sys, time
from crashproof import ProgressTracker, TrackerSettings
settings = TrackerSettings(sync_interval_seconds=0.5, throughput_window_seconds=2.0)
tracker = ProgressTracker(sys.argv[1], {"lr": 1}, 1_000_000, settings=settings)
end, step = time.monotonic() + float(sys.argv[2]), 0
while time.monotonic() < end:
    step += 1
    tracker.update_metrics(step, 1.0, {}, 0.1, step, step)
    time.sleep(0.01)
tracker.close()
"""
STOPPED_SECONDS = 5.0


def test_a_process_that_was_stopped_was_paused(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "progress"), "9"], stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "progress" / "metrics.jsonl").exists():
        time.sleep(0.01)
    time.sleep(2)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(STOPPED_SECONDS)
    os.kill(process.pid, signal.SIGCONT)
    _, log = process.communicate(timeout=30)

    reader = RunReader.open(tmp_path)
    session, updates = reader.session(), list(reader.history())
    share = goodput_seconds(session)
    (pause,) = [event for event in reader.events() if isinstance(event, Paused)]
    assert "standstill" == pause.cause
    assert STOPPED_SECONDS == pytest.approx(pause.seconds, abs=0.5)
    assert pause.seconds == share.paused
    assert share.productive < 9 - STOPPED_SECONDS + 0.5
    assert "The process stood still for 5 s" in log
    # The same pace before and after it, and no update that took seconds.
    hours = [line.wall_clock_hours for line in updates]
    assert max(later - earlier for earlier, later in pairwise(hours)) * 3600 < 2.0
    rates = [line.throughput_samples_per_sec for line in updates[20:]]
    assert min(rates) > max(rates) / 3  # type: ignore[operator,type-var]
    assert session.busy_seconds < 9 - STOPPED_SECONDS + 0.5


@pytest.fixture
def stand_still(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the process of a tracker stand still until the background thread, or an update, notices."""

    def tick() -> Any:
        return Tick(steady=clock.steady(), since_boot=clock.since_boot(), cpu=0.0)

    monkeypatch.setattr(recorder, "current_tick", tick)

    def stand(tracker: ProgressTracker, *, stopped: float = 0.0, suspended: float = 0.0) -> None:
        tracker._standstills.begin_wait(tick())
        clock.advance(1.0 + stopped)
        clock.suspend(suspended)
        tracker._standstills.end_wait(tick())

    return stand


@pytest.mark.parametrize(
    "how", [{"stopped": 75.0}, {"suspended": 28800.0}, {"stopped": 75.0, "suspended": 28800.0}], ids=str
)
def test_throughput_and_the_time_left_go_on_after_a_standstill(
    open_tracker: Callable[..., Any],
    update: Callable[..., None],
    clock: FakeClock,
    stand_still: Callable[..., None],
    how: dict[str, float],
) -> None:
    tracker = open_tracker(total_steps=1000)
    for step in range(1, 101):
        clock.advance(1.0)
        update(tracker, step)
    before = tracker.get_progress_summary()
    stand_still(tracker, **how)
    update(tracker, 101)
    after = tracker.get_progress_summary()

    assert before["throughput_samples_per_sec"] == pytest.approx(after["throughput_samples_per_sec"], rel=0.01)
    assert before["estimated_remaining_hours"] == pytest.approx(after["estimated_remaining_hours"], rel=0.03)
    assert sum(how.values()) == pytest.approx(after["goodput_seconds"]["paused"])
    assert 101 / 3600 == pytest.approx(after["elapsed_wall_clock_hours"], abs=1e-6)


def test_a_standstill_between_a_report_and_its_numbers_is_left_out_of_neither_twice(
    open_tracker: Callable[..., Any],
    update: Callable[..., None],
    clock: FakeClock,
    stand_still: Callable[..., None],
    device: Any,
) -> None:
    tracker = open_tracker()
    clock.advance(100.0)
    update(tracker, 1, device.tensor(2.5))
    device.has_to_be_waited_for = True
    stand_still(tracker, stopped=75.0)
    clock.advance(99.0)
    update(tracker, 2)

    hours = [line.wall_clock_hours for line in tracker.session.metrics_history]
    assert [100 / 3600, 200 / 3600] == pytest.approx(hours, abs=1e-6)


def train_and_kill(open_tracker: Any, update: Any, clock: FakeClock, jump: float) -> ProgressTracker:
    tracker = open_tracker()
    clock.advance(1800.0)
    update(tracker, 1)
    clock.jump(jump)
    clock.advance(1800.0)
    update(tracker, 2)
    return tracker


@pytest.mark.parametrize("jump", [-86400.0, 0.0, 86400.0], ids=["back", "not set", "forward"])
@pytest.mark.parametrize("later_jump", [-86400.0, 0.0, 86400.0], ids=["then back", "then not", "then forward"])
@pytest.mark.parametrize("is_killed", [True, False])
def test_a_clock_that_is_set_a_day_off_makes_no_day_of_downtime(
    open_tracker: Callable[..., Any],
    update: Callable[..., None],
    clock: FakeClock,
    left_by_a_kill: Callable[[Path], Path],
    run_dir: Path,
    jump: float,
    later_jump: float,
    is_killed: bool,
) -> None:
    first = train_and_kill(open_tracker, update, clock, jump)
    if not is_killed:
        first.close()
    left = left_by_a_kill(run_dir)
    clock.jump(later_jump)
    clock.advance(60.0)
    second = open_tracker(output_dir=left)
    clock.advance(600.0)
    update(second, 3)

    share = second.get_progress_summary()["goodput_seconds"]
    assert 60.0 == pytest.approx(share["down"], abs=0.1)
    assert 1800.0 == pytest.approx(share["productive"], abs=0.1)


def test_a_job_s_pace_is_not_distorted_by_a_clock_that_is_set(
    open_tracker: Callable[..., Any], clock: FakeClock
) -> None:
    tracker = open_tracker(total_steps=100)
    for done in range(1, 51):
        clock.advance(10.0)
        if done == 25:
            clock.jump(86400.0)
        tracker.record_job_progress(done)

    assert 500.0 == pytest.approx(tracker.get_remaining_seconds(), rel=0.05)

"""A journalled update reaches the session when that is asked for, or at the next heartbeat."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from crashproof import ProgressTracker, TrackerSettings
from crashproof.disk.run_folder import RunFolder
from crashproof.reading.run_state import read_run
from crashproof.tracking import run_writer


def test_whatever_asks_sees_every_update(open_tracker: Callable[..., Any], update: Callable[..., None]) -> None:
    tracker = open_tracker()
    for step in range(1, 201):
        update(tracker, step)

    assert 200 == tracker.get_progress_summary()["steps_completed"]
    update(tracker, 201)
    assert 100 == tracker.get_loss_trend()["window_size"]
    update(tracker, 202)
    tracker.record_evaluation(202, {"perplexity": 2.0})
    assert (202, 202) == (tracker.session.steps_completed, tracker.session.evaluations[-1].step)


def test_they_wait_in_bounded_memory(
    open_tracker: Callable[..., Any], update: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_writer, "MOST_UNAPPLIED", 100)
    tracker = open_tracker(total_steps=10_000)
    most = 0
    for step in range(1, 1001):
        update(tracker, step)
        most = max(most, tracker._writer.num_unapplied)

    assert 0 < most < 100
    assert 1000 == tracker.session.steps_completed


def test_the_heartbeat_applies_them(tmp_path: Path, update: Callable[..., None]) -> None:
    settings = TrackerSettings(sync_interval_seconds=0.05)
    tracker = ProgressTracker(tmp_path / "progress", {}, 10_000, settings=settings)
    for step in range(1, 601):
        update(tracker, step)
    deadline = time.monotonic() + 30
    while tracker._writer.num_unapplied and time.monotonic() < deadline:
        time.sleep(0.01)

    assert 0 == tracker._writer.num_unapplied
    assert RunFolder.under(tmp_path).curves.exists()
    tracker.close()


def test_threads_that_report_ask_and_record_agree_with_the_journal(tmp_path: Path) -> None:
    settings = TrackerSettings(sync_interval_seconds=0.02)
    tracker = ProgressTracker(tmp_path / "progress", {}, 100_000, settings=settings)
    seen, is_done = [], threading.Event()

    def ask() -> None:
        while not is_done.is_set():
            seen.append(tracker.session.steps_completed)

    def record() -> None:
        while not is_done.is_set():
            tracker.record_connection_failure(1, "refused")
            time.sleep(0.001)

    threads = [threading.Thread(target=each) for each in (ask, record)]
    for thread in threads:
        thread.start()
    for step in range(1, 5001):
        tracker.update_metrics(step, 1.0 / step, {"kd": 0.5}, 0.1, step, step)
    is_done.set()
    for thread in threads:
        thread.join()
    live = msgspec.json.encode(tracker.session)
    tracker.save()

    assert seen == sorted(seen)
    assert live == msgspec.json.encode(read_run(RunFolder.under(tmp_path)).session)
    assert live == msgspec.json.encode(read_run(RunFolder.under(tmp_path), trust_snapshot=False).session)
    tracker.close()

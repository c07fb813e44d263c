from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from alert_receiver import AlertReceiver, eventually

from crashproof import AlertSettings, ProgressTracker, RunReader, TrackerSettings
from crashproof.disk.files import Disk
from crashproof.errors import BudgetExhausted
from crashproof.records.events import AlertCleared, AlertRaised
from crashproof.testing import FakeClock, forget_open_runs

Open = Callable[..., ProgressTracker]
Update = Callable[..., None]


def settings(**alerts: Any) -> TrackerSettings:
    return TrackerSettings(has_heartbeat=False, alerts=AlertSettings(**({"disk_low_bytes": 0} | alerts)))


def recorded(run_dir: Path) -> list[str]:
    """The kinds raised, and those cleared with a minus before them."""
    return [
        f"{'-' if isinstance(event, AlertCleared) else ''}{event.kind}"
        for event in RunReader.open(run_dir).events()
        if isinstance(event, AlertRaised | AlertCleared)
    ]


def test_an_active_alert_is_in_the_summary_until_it_is_cleared(
    open_tracker: Open, update: Update, clock: FakeClock
) -> None:
    tracker = open_tracker(settings=settings())
    update(tracker, 1, loss=float("nan"))
    tracker.save()
    before = tracker.get_progress_summary()["alerts_active"]
    for step in range(2, 1302):
        clock.advance(1.0)
        update(tracker, step)
        if step % 50 == 0:
            tracker.save()

    assert (["non_finite"], []) == (before, tracker.get_progress_summary()["alerts_active"])


def test_a_restart_neither_repeats_nor_forgets_an_alert(
    open_tracker: Open, update: Update, run_dir: Path, clock: FakeClock, left_by_a_kill: Callable[[Path], Path]
) -> None:
    first = open_tracker(settings=settings())
    for step in range(1, 101):
        clock.advance(1.0)
        update(first, step, loss=1.0 + 0.1 * step)
    first.save()
    left = left_by_a_kill(run_dir)
    second = open_tracker(output_dir=left, settings=settings())
    update(second, 101, loss=11.1)
    second.save()

    assert ["diverging", "crashed"] == recorded(left)
    assert ["diverging"] == second.get_progress_summary()["alerts_active"]
    assert second.session == RunReader.open(left).session()


def test_a_crash_is_reported_once_by_the_next_attempt(
    open_tracker: Open, update: Update, run_dir: Path, left_by_a_kill: Callable[[Path], Path]
) -> None:
    update(open_tracker(settings=settings()), 1)
    left = left_by_a_kill(run_dir)
    for _ in range(2):
        open_tracker(output_dir=left, settings=settings()).close()

    assert ["crashed"] == recorded(left)
    assert [("crashed",), (), ()] == [each.alerted for each in RunReader.open(left).session().attempts]


def test_a_run_that_is_taken_over_by_its_own_process_has_not_crashed(
    open_tracker: Open, update: Update, run_dir: Path
) -> None:
    update(open_tracker(settings=settings()), 1)
    open_tracker(settings=settings())

    assert [] == recorded(run_dir)


def test_a_budget_that_ends_the_run_is_spent(open_tracker: Open, run_dir: Path) -> None:
    tracker = open_tracker(settings=settings(budget_dollars=Decimal(1)))
    tracker.record_api_response("one", {"text": "1"}, 0.9)
    error = BudgetExhausted("The budget of $1.00 does not allow a request that can cost $0.20.")
    tracker.close("raised", error)

    assert ["budget_80", "budget_100", "raised"] == recorded(run_dir)


def test_alerts_wait_while_the_disk_is_full(open_tracker: Open, update: Update, run_dir: Path) -> None:
    class Filling(Disk):
        is_full = False

        def write(self, file: int, content: bytes) -> int:
            if self.is_full:
                raise OSError(28, "No space left on device")
            return super().write(file, content)

    disk = Filling()
    tracker = open_tracker(settings=settings(disk_low_bytes=1 << 62), disk=disk)
    disk.is_full = True
    update(tracker, 1)
    with pytest.raises(Exception, match="full"):
        tracker.save()
    before = recorded(run_dir)
    disk.is_full = False
    tracker.save()

    assert ([], ["disk_low"]) == (before, recorded(run_dir))


def test_a_failing_alert_does_not_stop_the_training(
    open_tracker: Open, update: Update, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = open_tracker(settings=settings(webhook="http://127.0.0.1:9/"))
    monkeypatch.setattr("crashproof.alerts.monitor.changes_of", lambda *_: 1 / 0)
    update(tracker, 1)
    for _ in range(20):
        tracker.save()
    tracker.close()

    assert 1 == caplog.messages.count("An alert could not be raised; training goes on.")


def test_a_process_that_cannot_be_started_is_logged_and_stops_nothing(
    open_tracker: Open, update: Update, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    tracker = open_tracker(total_steps=1, settings=settings(webhook="http://127.0.0.1:9/"))
    update(tracker, 1)
    tracker.close()

    assert any(message.startswith("Alerts are not sent: could not start") for message in caplog.messages)


@pytest.mark.parametrize(
    "kinds, expected",
    [
        pytest.param(None, ["complete", "non_finite"], id="all"),
        pytest.param({"complete"}, ["complete"], id="one-kind"),
    ],
)
def test_every_alert_is_recorded_and_only_the_requested_kinds_are_sent(
    open_tracker: Open, update: Update, run_dir: Path, kinds: Any, expected: list[str]
) -> None:
    with AlertReceiver() as receiver:
        tracker = open_tracker(total_steps=1, settings=settings(webhook=receiver.address, kinds=kinds))
        update(tracker, 1, loss=float("inf"))
        tracker.close()
        receiver.wait_for(len(expected))

        assert ["non_finite", "complete"] == recorded(run_dir)
        assert expected == receiver.kinds


def test_the_bell_rings_in_a_terminal_only(
    open_tracker: Open, update: Update, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return self.is_terminal

        is_terminal = True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    tracker = open_tracker(settings=settings(bell=True))
    update(tracker, 1, loss=float("nan"))
    tracker.save()
    terminal.is_terminal = False
    tracker.close("raised", ValueError("no"))

    assert 1 == terminal.getvalue().count("\a")


def test_bad_news_is_a_warning_and_a_completed_run_is_not(
    open_tracker: Open, update: Update, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="crashproof")
    tracker = open_tracker(total_steps=1, settings=settings())
    update(tracker, 1, loss=float("nan"))
    tracker.close()

    assert [("WARNING", "Alert non_finite"), ("INFO", "Alert complete")] == [
        (record.levelname, record.getMessage().partition(":")[0])
        for record in caplog.records
        if record.getMessage().startswith("Alert")
    ]


def test_a_forked_child_sends_nothing_and_leaves_the_process_to_its_parent(
    open_tracker: Open, update: Update, run_dir: Path
) -> None:
    with AlertReceiver() as receiver:
        tracker = open_tracker(total_steps=1, settings=settings(webhook=receiver.address))
        sender = tracker._alerts._process
        assert sender is not None
        child = os.fork()
        if child == 0:
            os._exit(0 if tracker._alerts._process is None else 1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        update(tracker, 1)
        tracker.close()
        receiver.wait_for(1)
        eventually(lambda: sender._process is not None and sender._process.returncode == 0)

        assert (0, ["complete"]) == (code, receiver.kinds)


def test_no_process_is_started_where_nothing_is_sent(open_tracker: Open) -> None:
    tracker = open_tracker(settings=settings(bell=True))

    assert None is tracker._alerts._process
    forget_open_runs()

"""Only one process writes a run, and a writer notices another one that its lock did not keep out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crashproof import ProgressTracker, RunReader
from crashproof.errors import RunClosed, RunInUse
from crashproof.testing import FakeClock

HOLDER = """
import sys
from crashproof import ProgressTracker
tracker = ProgressTracker(sys.argv[1], {"lr": 1}, 10)
tracker.update_metrics(1, 1.0, {}, 0.1, 1, 1)
print("open", flush=True)
sys.stdin.read()
"""

WRITER = """
import fcntl, sys, time
if sys.argv[2] == "local":
    fcntl.flock = lambda file, how: None   # As on a mount whose locks end at the mount.
from crashproof import ProgressTracker, TrackerSettings
from crashproof.errors import RunError
settings = TrackerSettings(sync_interval_seconds=float(sys.argv[3]), summary_interval_seconds=9)
tracker = ProgressTracker(sys.argv[1], {"lr": 1}, 100_000, settings=settings)
step = tracker.session.steps_completed
print("open", flush=True)
try:
    while True:
        step += 1
        tracker.update_metrics(step, 1.0, {}, 0.1, step, step)
        print(step, flush=True)
        time.sleep(0.002)
except RunError as error:
    print(type(error).__name__, error, flush=True)
    tracker.close(error=error)
    print("closed", flush=True)
"""


class Writer:
    """A process that writes a run until it is stopped, and prints each acknowledged step."""

    def __init__(self, folder: Path, *, locks: str = "shared", heartbeat_seconds: float = 0.05) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), locks, str(heartbeat_seconds)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        assert self.process.stdout is not None
        assert b"open\n" == self.process.stdout.readline()
        self.pid = self.process.pid

    def finish(self, *, kill: bool = False) -> tuple[list[int], str, str]:
        """The acknowledged steps, the error that ended it, and its log."""
        if kill:
            self.process.kill()
        output, log = (text.decode() for text in self.process.communicate(timeout=30))
        lines = output.splitlines()
        steps = [int(line) for line in lines if line.isdigit()]
        return steps, "\n".join(line for line in lines if not line.isdigit()), log


def journalled_steps(folder: Path, attempt: int) -> list[int]:
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if line["attempt"] == attempt]


def start_holder(folder: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert b"open\n" == process.stdout.readline()
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.communicate(timeout=30)


def test_a_second_process_gets_an_error_that_names_the_writer(tmp_path: Path) -> None:
    holder = start_holder(tmp_path / "progress")

    with pytest.raises(RunInUse, match=f"process {holder.pid} on ") as refusal:
        ProgressTracker(tmp_path / "progress", {"lr": 1}, 10)

    assert holder.pid == refusal.value.pid
    # Looking needs no lock.
    assert [1] == [line.step for line in RunReader.open(tmp_path).history()]
    end(holder)


def test_a_killed_writer_leaves_the_run_to_the_next(tmp_path: Path) -> None:
    holder = start_holder(tmp_path / "progress")
    holder.kill()
    end(holder)

    tracker = ProgressTracker(tmp_path / "progress", {"lr": 1}, 10)

    assert 1 == tracker.session.steps_completed
    tracker.close()


def test_a_surviving_child_does_not_keep_a_killed_writers_run(tmp_path: Path) -> None:
    forking = HOLDER.replace(
        "print(", "import os, time\nif os.fork() == 0:\n    time.sleep(20)\n    os._exit(0)\nprint("
    )
    process = subprocess.Popen(
        [sys.executable, "-c", forking, str(tmp_path / "progress")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    process.kill()
    process.wait()

    tracker = ProgressTracker(tmp_path / "progress", {"lr": 1}, 10)

    tracker.close()
    os.kill(child, 9)
    assert process.stdin is not None
    process.stdin.close()
    process.stdout.close()


def test_on_local_locks_the_earlier_writer_stops_and_names_the_newer_one(tmp_path: Path) -> None:
    folder = tmp_path / "progress"
    first = Writer(folder, locks="local")
    time.sleep(0.2)
    second = Writer(folder, locks="local")
    steps, error, log = first.finish()
    time.sleep(0.5)
    goes_on = second.process.poll() is None
    later_steps, _, later_log = second.finish(kill=True)

    assert goes_on, later_log
    assert f"RunInUse {tmp_path} is being written by process {second.pid} on " in error
    assert "stopped, because writer.lock names that process" in error
    assert error.endswith("closed")
    assert f"process {second.pid}" in log
    assert [] == RunReader.open(tmp_path).problems()
    assert steps == journalled_steps(folder, 1)
    assert later_steps == journalled_steps(folder, 2)[: len(later_steps)]


def test_a_writer_whose_lock_was_removed_stops_if_another_one_came_in(tmp_path: Path) -> None:
    folder = tmp_path / "progress"
    first = Writer(folder, heartbeat_seconds=4)
    (folder / "writer.lock").unlink()
    second = Writer(folder)
    steps, error, _ = first.finish()
    later_steps, _, log = second.finish(kill=True)

    assert f"RunInUse {tmp_path} is being written by process {second.pid} on " in error
    assert steps == journalled_steps(folder, 1)
    assert later_steps == journalled_steps(folder, 2)[: len(later_steps)]
    assert "Traceback" not in log
    assert [] == RunReader.open(tmp_path).problems()


def test_a_removed_lock_that_nobody_took_is_locked_again(tmp_path: Path) -> None:
    folder = tmp_path / "progress"
    first = Writer(folder)
    (folder / "writer.lock").unlink()
    while not (folder / "writer.lock").exists():
        time.sleep(0.01)

    with pytest.raises(RunInUse, match=f"process {first.pid} on "):
        ProgressTracker(folder, {"lr": 1}, 10)
    steps, error, log = first.finish(kill=True)
    assert (steps, "") == (journalled_steps(folder, 1)[: len(steps)], error)
    assert "writer.lock was removed or replaced while this process held it; it is locked again" in log


@pytest.fixture
def tracker(open_tracker: Callable[..., ProgressTracker], update: Callable[..., None]) -> ProgressTracker:
    """One that looks for another writer only when it is saved."""
    tracker = open_tracker()
    update(tracker, 1)
    return tracker


def write_as_other(progress: Path, since: float) -> None:
    """Take over as another machine would whose locks do not reach this one."""
    (progress / "writer.lock").write_text(json.dumps({"host": "node8", "pid": 812, "since": since}))


def test_the_newer_writer_goes_on_while_the_earlier_one_may_not_have_noticed_it(
    tracker: ProgressTracker, update: Callable[..., None], clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = tracker.metrics_file
    foreign = metrics.read_bytes()
    with metrics.open("ab") as file:
        file.write(foreign)
    tracker.save()
    clock.advance(10)
    update(tracker, 2)
    tracker.save()

    assert [1, 1, 2] == journalled_steps(metrics.parent, 1)
    (warning,) = [each for each in caplog.messages if "Another process has added lines" in each]
    assert f"{metrics.parent}. They stay." in warning
    assert [] == RunReader.open(metrics.parent.parent).problems()


def test_a_writer_beside_one_that_never_stops_stops_itself(
    tracker: ProgressTracker, update: Callable[..., None], clock: FakeClock
) -> None:
    foreign = tracker.metrics_file.read_bytes()
    for _ in range(2):
        with tracker.metrics_file.open("ab") as file:
            file.write(foreign)
        if clock.steady() == 0.0:
            tracker.save()
            clock.advance(31)

    with pytest.raises(RunClosed, match=r"stopped, because metrics\.jsonl has lines of another process"):
        tracker.save()
    with pytest.raises(RunClosed, match="has lines of another process"):
        update(tracker, 2)


def test_lines_that_a_stopped_writer_could_not_write_are_in_quarantine(
    tracker: ProgressTracker, update: Callable[..., None], clock: FakeClock, device: Any
) -> None:
    update(tracker, 2, device.tensor(0.5))
    device.finish()
    progress = tracker.metrics_file.parent
    write_as_other(progress, clock.now() + 1)

    with pytest.raises(RunInUse, match=r"process 812 on node8\. .* What is not in the run is in .*set_aside/metrics"):
        tracker.save()
    (kept,) = (progress / "set_aside").iterdir()
    assert [2] == [json.loads(line)["step"] for line in kept.read_text().splitlines()]
    assert [1] == journalled_steps(progress, 1)


def test_a_journal_that_another_process_has_replaced_under_its_writer_is_kept(
    tracker: ProgressTracker, update: Callable[..., None], clock: FakeClock
) -> None:
    metrics, progress = tracker.metrics_file, tracker.metrics_file.parent
    shutil.copy(metrics, progress / "copy")
    (progress / "copy").replace(metrics)
    update(tracker, 2)
    write_as_other(progress, clock.now() - 1)

    with pytest.raises(RunInUse, match=r"metrics\.jsonl was replaced by another file"):
        tracker.save()
    (kept,) = (progress / "set_aside").iterdir()
    assert [1, 2] == [json.loads(line)["step"] for line in kept.read_text().splitlines()]
    assert [1] == journalled_steps(progress, 1)


def test_an_old_copy_of_the_lock_file_stops_nobody(tracker: ProgressTracker, clock: FakeClock) -> None:
    write_as_other(tracker.metrics_file.parent, clock.now() - 3600)

    tracker.save()


def test_a_writer_that_is_told_only_when_it_closes_records_no_end(tracker: ProgressTracker, clock: FakeClock) -> None:
    progress = tracker.metrics_file.parent
    write_as_other(progress, clock.now() + 1)

    with pytest.raises(RunInUse, match="process 812 on node8"):
        tracker.close()
    tracker.close()
    assert "attempt_ended" not in (progress / "events.jsonl").read_text()


def test_a_tracker_of_this_process_takes_over_although_the_lock_file_was_removed(
    tracker: ProgressTracker, open_tracker: Callable[..., ProgressTracker], update: Callable[..., None]
) -> None:
    (tracker.metrics_file.parent / "writer.lock").unlink()
    second = open_tracker()

    with pytest.raises(RunClosed, match="replaced by a newer one in this process"):
        update(tracker, 2)
    update(second, 2)

"""Only one process writes a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crashproof import ProgressTracker, RunReader
from crashproof.errors import RunInUse

HOLDER = """
import sys
from crashproof import ProgressTracker
tracker = ProgressTracker(sys.argv[1], {"lr": 1}, 10)
tracker.update_metrics(1, 1.0, {}, 0.1, 1, 1)
print("open", flush=True)
sys.stdin.read()
"""


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

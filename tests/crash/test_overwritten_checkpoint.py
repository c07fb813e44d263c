"""A loop that saves to one file over and over is killed, half of the times in a save, and resumes where it was."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crashproof import ProgressTracker, TrackerSettings
from crashproof.errors import NoUsableCheckpoint
from crashproof.testing import forget_open_runs

LOOP = """
import hashlib, sys, time
from pathlib import Path
from crashproof import ProgressTracker, write_atomically

def state_after(step):
    state = b"seed"
    for _ in range(step):
        state = hashlib.sha256(state).digest()
    return state

def content_of(step, state):
    return b"%d %s\\n" % (step, state.hex().encode()) * 2000

out, way = Path(sys.argv[1]), sys.argv[2]
path = out / "last.pt"

def write_slowly(file, content):
    file.write(content[: len(content) // 2])
    file.flush()
    print("saving", flush=True)
    time.sleep(0.01)
    file.write(content[len(content) // 2 :])

tracker = ProgressTracker(out / "progress", {"lr": 1}, 10**9)
newest = tracker.get_recovery_checkpoint()
step, state = 0, b"seed"
if newest is not None:
    step = newest.checkpoint_step
    state = state_after(step)
    assert Path(newest.checkpoint_path).read_bytes() == content_of(step, state), "not the bytes of its step"
print("resumed", step, flush=True)
while True:
    step += 1
    state = hashlib.sha256(state).digest()
    tracker.update_metrics(step, 1.0 / step, {}, 0.1, step, step)
    content = content_of(step, state)
    if way == "renamed":
        written = write_atomically(path, lambda file: write_slowly(file, content))
    else:
        written = None
        with path.open("wb") as file:
            write_slowly(file, content)
    tracker.record_checkpoint(step, path, step, written=written)
    print("acknowledged", step, flush=True)
"""


def run_until_killed(output_dir: Path, way: str, chance: random.Random, *, in_a_save: bool) -> tuple[int, int]:
    """The step at which a process resumed, and the newest one that it acknowledged before it was killed."""
    process = subprocess.Popen([sys.executable, "-c", LOOP, str(output_dir), way], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.readline().split()
    assert ["resumed"] == first[:1], f"it did not resume (exit code {process.wait()})"
    resumed = acknowledged = int(first[1])
    num_lines = chance.randint(2, 12)
    for line in process.stdout:
        num_lines -= 1
        acknowledged = int(line.split()[1]) if line.startswith("acknowledged") else acknowledged
        if num_lines <= 0 and line.startswith("saving") == in_a_save:
            break
    time.sleep(chance.uniform(0.0, 0.012))
    process.send_signal(signal.SIGKILL)
    for line in process.stdout:
        acknowledged = int(line.split()[1]) if line.startswith("acknowledged") else acknowledged
    process.wait()
    process.stdout.close()
    return resumed, acknowledged


def kill_often(output_dir: Path, way: str, num_kills: int) -> None:
    chance = random.Random(num_kills)
    expected = 0
    for number in range(num_kills):
        resumed, acknowledged = run_until_killed(output_dir, way, chance, in_a_save=number % 2 == 0)
        assert resumed >= expected, f"kill {number}: step {expected} was acknowledged, resumed at {resumed}"
        expected = acknowledged
    print(
        f"\n{way}: {num_kills} kills, half in saves: 0 failed resumes, every resume at the newest acknowledged step"
    )


@pytest.mark.parametrize("way", ["renamed", "in place"])
def test_a_loop_that_overwrites_its_checkpoint_resumes_where_it_was(tmp_path, way):
    kill_often(tmp_path, way, 8)


@pytest.mark.long
@pytest.mark.parametrize("way", ["renamed", "in place"])
def test_a_loop_that_overwrites_its_checkpoint_resumes_after_thirty_kills(tmp_path, way):
    kill_often(tmp_path, way, 30)


def save_in_place(tracker, path: Path, step: int) -> None:
    tracker.update_metrics(step, 1.0 / step, {}, 0.1, step, step)
    path.write_bytes(b"%d" % step * 100)
    tracker.record_checkpoint(step, path, step)


def open_run(folder: Path, **settings) -> ProgressTracker:
    return ProgressTracker(
        folder / "progress", {"lr": 1}, 100, settings=TrackerSettings(has_heartbeat=False, **settings)
    )


def kill_in_a_save(path: Path) -> None:
    forget_open_runs()
    time.sleep(0.02)
    path.write_bytes(b"x" * path.stat().st_size)


def test_a_large_file_that_is_overwritten_before_its_digest_is_done_costs_one_save(tmp_path):
    path = tmp_path / "last.pt"
    save_in_place(open_run(tmp_path), path, 1)
    tracker = open_run(tmp_path, large_checkpoint_bytes=1)
    tracker._checkpoints._digests.start = lambda checkpoint: None
    save_in_place(tracker, path, 2)
    kill_in_a_save(path)

    offered = open_run(tmp_path).get_recovery_checkpoint()

    assert (1, b"1" * 100) == (offered.checkpoint_step, Path(offered.checkpoint_path).read_bytes())


def test_a_copy_that_a_kill_prevented_is_made_when_the_checkpoint_is_resumed(tmp_path):
    path = tmp_path / "last.pt"
    tracker = open_run(tmp_path)
    tracker._removal.keep_previous = lambda acknowledged, is_replaced: None
    save_in_place(tracker, path, 1)
    forget_open_runs()
    assert path == Path(open_run(tmp_path).get_recovery_checkpoint().checkpoint_path)
    kill_in_a_save(path)

    offered = open_run(tmp_path).get_recovery_checkpoint()

    assert (1, b"1" * 100) == (offered.checkpoint_step, Path(offered.checkpoint_path).read_bytes())


def test_an_unchanged_older_one_comes_before_a_newer_one_that_was_written_to(tmp_path):
    tracker = open_run(tmp_path, large_checkpoint_bytes=1)
    tracker._checkpoints._digests.start = lambda checkpoint: None
    save_in_place(tracker, tmp_path / "ck_1.pt", 1)
    save_in_place(tracker, tmp_path / "last.pt", 2)
    kill_in_a_save(tmp_path / "last.pt")

    assert 1 == open_run(tmp_path).get_recovery_checkpoint().checkpoint_step


def test_the_only_one_is_refused_if_it_was_written_to_before_its_digest_was_done(tmp_path):
    tracker = open_run(tmp_path, large_checkpoint_bytes=1)
    tracker._checkpoints._digests.start = lambda checkpoint: None
    save_in_place(tracker, tmp_path / "last.pt", 2)
    kill_in_a_save(tmp_path / "last.pt")

    with pytest.raises(NoUsableCheckpoint, match="it was written to after it was recorded, before its digest"):
        open_run(tmp_path).get_recovery_checkpoint()

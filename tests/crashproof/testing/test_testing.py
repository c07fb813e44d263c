from __future__ import annotations

import errno
import os
import signal
import sys
import textwrap

import pytest

from crashproof.disk.atomic import write_bytes_atomically
from crashproof.errors import DiskFull, RunClosed
from crashproof.testing import FakeClock, FaultyDisk, PowerLost, forget_open_runs, run_and_kill


def test_a_fake_clock_goes_only_when_told_to():
    clock = FakeClock(now=1000.0)
    clock.advance(1.5, minutes=1, hours=1, days=1)
    passed = 1.5 + 60 + 3600 + 86400

    assert (1000.0 + passed, passed) == (clock.now(), clock.steady())


def test_setting_the_wall_clock_leaves_steady_time_alone():
    clock = FakeClock(now=1000.0)
    clock.jump(-500.0)

    assert (500.0, 0.0) == (clock.now(), clock.steady())


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def faulty(root, **how) -> FaultyDisk:
    return FaultyDisk(root, root.parent / "scratch", **how)


def test_a_disk_that_never_fails_only_counts(root):
    disk = faulty(root)
    write_bytes_atomically(root / "a", b"new", disk=disk)

    assert b"new" == (root / "a").read_bytes()
    assert disk.num_operations > 3


def test_every_operation_can_be_made_to_fail_and_the_old_content_stays(root):
    (root / "a").write_bytes(b"old")
    disk = faulty(root)
    write_bytes_atomically(root / "a", b"old", disk=disk)

    found = []
    for number in range(disk.num_operations):
        with pytest.raises(DiskFull):
            write_bytes_atomically(root / "a", b"new", disk=faulty(root, fails_at=number, error=errno.ENOSPC))
        found.append((root / "a").read_bytes())
        (root / "a").write_bytes(b"old")

    # The last operation, the sync of the folder, comes after the rename.
    assert [b"old"] * (disk.num_operations - 1) + [b"new"] == found


@pytest.mark.parametrize("world", FaultyDisk.WORLDS)
def test_a_power_loss_leaves_the_old_file_or_the_new_one(root, tmp_path, world):
    (root / "a").write_bytes(b"old")
    count = faulty(root)
    write_bytes_atomically(root / "a", b"old", disk=count)

    left = set()
    for number in range(count.num_operations):
        disk = faulty(root, fails_at=number)
        with pytest.raises(PowerLost):
            write_bytes_atomically(root / "a", b"new", disk=disk)
        target = tmp_path / f"{world}_{number}"
        disk.after_power_loss(target, world, seed=number)
        left.add((target / "a").read_bytes())
        for each in root.iterdir():
            each.unlink()
        (root / "a").write_bytes(b"old")

    assert left <= {b"old", b"new"}


def test_after_the_power_has_gone_nothing_works_any_more(root):
    disk = faulty(root, fails_at=0)
    with pytest.raises(PowerLost):
        disk.make_folder(root / "a")

    with pytest.raises(PowerLost):
        disk.remove_file(root / "b")


def test_a_disk_that_lies_about_folders_loses_a_renamed_file(root, tmp_path):
    disk = faulty(root, ignores_folder_syncs=True)
    write_bytes_atomically(root / "a", b"new", disk=disk)
    disk.after_power_loss(tmp_path / "left", "strict")

    assert [] == list((tmp_path / "left").iterdir())


def test_a_run_is_let_go_of_without_a_word_as_by_the_death_of_its_process(open_tracker, update):
    update(open_tracker(), 1)
    forget_open_runs()
    tracker = open_tracker()

    assert ["crashed", "running"] == [attempt.how for attempt in tracker.session.attempts]
    assert 1 == tracker.session.steps_completed


def test_a_run_that_was_let_go_of_takes_nothing_more(open_tracker, update):
    tracker = open_tracker()
    forget_open_runs()

    with pytest.raises(RunClosed, match="belongs to the parent process"):
        update(tracker, 1)
    tracker.close()


WAITER = """
    import pathlib, sys, time
    print("started", flush=True)
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(60)
"""


def test_a_process_is_killed_at_its_moment(tmp_path):
    moment = tmp_path / "moment"
    ended = run_and_kill([sys.executable, "-c", textwrap.dedent(WAITER), str(moment)], when=moment.exists)

    assert (True, -signal.SIGKILL, "started\n") == (ended.was_killed, ended.return_code, ended.output)


def test_a_process_that_ends_by_itself_was_not_killed():
    ended = run_and_kill([sys.executable, "-c", "print('done')"], when=lambda: False)

    assert (False, 0, "done\n") == (ended.was_killed, ended.return_code, ended.output)


def test_a_moment_that_never_comes_ends_in_an_error_and_leaves_no_process():
    pids = []

    def never() -> bool:
        pids.append(os.getpid())
        return False

    with pytest.raises(TimeoutError, match="nor reached the kill condition"):
        run_and_kill([sys.executable, "-c", "import time; time.sleep(60)"], when=never, timeout_seconds=0.2)

    assert pids

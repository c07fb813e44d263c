from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from crashproof.disk.files import Disk
from crashproof.disk.lock import WriterLock, abandon_all, holder_of
from crashproof.errors import RunInUse
from crashproof.testing import FaultyDisk, PowerLost


def test_the_holder_is_named(tmp_path: Path) -> None:
    lock = WriterLock(tmp_path / "lock", now=lambda: 7.0)

    holder = holder_of(tmp_path / "lock")

    assert holder is not None
    assert (os.getpid(), 7.0) == (holder.pid, holder.since)
    lock.release()
    assert None is holder_of(tmp_path / "lock")


def test_a_lock_that_was_never_taken_has_no_holder(tmp_path: Path) -> None:
    assert None is holder_of(tmp_path / "lock")


def test_another_lock_of_this_process_takes_over_and_notifies_the_first(tmp_path: Path) -> None:
    first = WriterLock(tmp_path / "lock")
    told: list[str] = []

    def release_first() -> None:
        told.append("takeover")
        first.release()

    first.on_takeover = release_first
    second = WriterLock(tmp_path / "lock")

    assert ["takeover"] == told
    second.release()


def test_one_that_is_still_being_opened_is_in_use(tmp_path: Path) -> None:
    first = WriterLock(tmp_path / "lock")

    with pytest.raises(RunInUse, match=str(os.getpid())):
        WriterLock(tmp_path / "lock")

    first.release()


def test_a_holder_whose_name_is_unreadable_is_still_a_holder(tmp_path: Path) -> None:
    lock = WriterLock(tmp_path / "lock")
    (tmp_path / "lock").write_bytes(b"{half")

    holder = holder_of(tmp_path / "lock")

    assert holder is not None
    assert 0 == holder.pid
    lock.release()


def test_a_full_disk_does_not_keep_a_lock_from_being_taken(tmp_path: Path) -> None:
    class Full(Disk):
        def truncate(self, file: int, num_bytes: int) -> None:
            raise OSError(28, "No space left on device")

    lock = WriterLock(tmp_path / "lock", disk=Full())

    assert holder_of(tmp_path / "lock") is not None
    lock.release()


def test_a_forked_child_releases_its_copy(tmp_path: Path) -> None:
    lock = WriterLock(tmp_path / "lock")
    told: list[str] = []
    lock.on_fork = lambda: told.append("fork")

    abandon_all()

    assert ["fork"] == told
    assert None is holder_of(tmp_path / "lock")


def write_name(path: Path, *, since: float) -> None:
    path.write_text(json.dumps({"host": "node8", "pid": 812, "since": since}))


@pytest.mark.parametrize(
    "since, expected", [pytest.param(8.0, 812, id="newer"), pytest.param(6.0, None, id="an-old-copy")]
)
def test_a_newer_name_in_the_file_is_another_writer(tmp_path: Path, since: float, expected: int | None) -> None:
    lock = WriterLock(tmp_path / "lock", now=lambda: 7.0)
    before = lock.find_other()
    write_name(tmp_path / "lock", since=since)
    other = lock.find_other()

    assert (None, expected) == (before, other.pid if other else None)
    assert lock.last_named is not None
    lock.release()


@pytest.mark.parametrize(
    "remove",
    [
        pytest.param(lambda path: path.unlink(), id="removed"),
        pytest.param(lambda path: path.rename(path.with_name("elsewhere")), id="renamed"),
        pytest.param(lambda path: (path.unlink(), write_name(path, since=1.0)), id="replaced"),
    ],
)
def test_a_lock_file_that_is_gone_is_locked_again(
    tmp_path: Path, remove: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    lock = WriterLock(tmp_path / "lock")
    remove(tmp_path / "lock")
    other = lock.find_other()

    assert other is None
    holder = holder_of(tmp_path / "lock")
    assert holder is not None
    assert os.getpid() == holder.pid
    assert ["is locked again" in each for each in caplog.messages] == [True]
    lock.release()
    assert None is holder_of(tmp_path / "lock")


@pytest.mark.parametrize("has_name, expected", [(True, 812), (False, None)])
def test_a_new_lock_file_that_another_process_holds_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_name: bool, expected: int | None
) -> None:
    lock = WriterLock(tmp_path / "lock")
    (tmp_path / "lock").unlink()
    other = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(other, fcntl.LOCK_EX)
    if has_name:
        write_name(tmp_path / "lock", since=1.0)
    monkeypatch.setattr("crashproof.disk.lock._SECONDS_BETWEEN_TRIES", 0.0)
    found = lock.find_other()

    assert expected == (found.pid if found else None)
    os.close(other)
    lock.release()


def test_a_folder_that_is_gone_names_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    lock = WriterLock(tmp_path / "run" / "lock")
    (tmp_path / "run").rename(tmp_path / "moved")

    assert None is lock.find_other()
    monkeypatch.setattr(Path, "stat", lambda *_, **__: os.stat("/proc/self/mem/nothing"))
    assert None is lock.find_other()
    lock.release()


def test_a_file_that_was_removed_while_it_was_being_locked_is_not_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, opened = fcntl.flock, []

    def flock_late(file: int, how: int) -> None:
        opened.append(os.fstat(file).st_ino)
        if len(opened) == 1:
            (tmp_path / "lock").unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", flock_late)
    lock = WriterLock(tmp_path / "lock")

    assert 2 == len(opened)
    assert None is lock.find_other()
    lock.release()


def test_a_lock_taken_as_the_power_goes_is_released(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    disk = FaultyDisk(tmp_path / "run", tmp_path / "scratch", fails_at=1)

    with pytest.raises(PowerLost):
        WriterLock(tmp_path / "run" / "lock", disk=disk)

    assert None is holder_of(tmp_path / "run" / "lock")

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crashproof.disk.files import Disk
from crashproof.disk.lock import WriterLock, abandon_all, holder_of
from crashproof.errors import RunInUse


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

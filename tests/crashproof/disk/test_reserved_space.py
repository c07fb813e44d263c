from __future__ import annotations

import errno
from pathlib import Path

import pytest

from crashproof.disk.files import REAL_DISK, Disk
from crashproof.disk.reserved_space import ReservedSpace
from crashproof.errors import DiskFull, StorageUnwritable
from crashproof.testing import FaultyDisk


class RefusingDisk(Disk):
    """Refuses one kind of operation while told to."""

    def __init__(self) -> None:
        self.error: int | None = None

    def allocate(self, file: int, num_bytes: int) -> None:
        self._refuse()
        super().allocate(file, num_bytes)

    def remove_file(self, path: Path) -> None:
        self._refuse()
        super().remove_file(path)

    def _refuse(self) -> None:
        if self.error is not None:
            raise OSError(self.error, "made to fail")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "ballast"


def test_what_is_held_takes_space_on_the_disk(path):
    ReservedSpace(path, disk=REAL_DISK).hold(100_000)

    assert 100_000 == path.stat().st_size
    assert path.stat().st_blocks * 512 >= 100_000


def test_nothing_is_held_before_it_is_asked_for(path):
    ballast = ReservedSpace(path, disk=REAL_DISK)

    assert not path.exists()
    assert ballast.give_up() is False


@pytest.mark.parametrize("num_bytes, expected", [(5000, 5000), (4096, 4096), (10, 4096), (0, 4096)])
def test_it_grows_and_never_shrinks(path, num_bytes, expected):
    ballast = ReservedSpace(path, disk=REAL_DISK)
    ballast.hold(4096)
    ballast.hold(num_bytes)

    assert expected == path.stat().st_size


def test_holding_what_is_held_already_costs_no_operation(path, tmp_path):
    disk = FaultyDisk(path.parent, tmp_path / "scratch")
    ballast = ReservedSpace(path, disk=disk)
    ballast.hold(4096)
    before = disk.num_operations
    ballast.hold(4096)

    assert before == disk.num_operations


def test_what_is_given_up_is_gone_and_can_be_held_again(path):
    ballast = ReservedSpace(path, disk=REAL_DISK)
    ballast.hold(4096)

    assert ballast.give_up() is True
    assert not path.exists()
    assert ballast.give_up() is False
    ballast.hold(100)
    assert 100 == path.stat().st_size


def test_what_a_killed_predecessor_held_is_taken_over(path):
    ReservedSpace(path, disk=REAL_DISK).hold(8192)
    successor = ReservedSpace(path, disk=REAL_DISK)
    successor.hold(4096)

    assert 8192 == path.stat().st_size
    assert successor.give_up() is True
    assert not path.exists()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_with_what_was_needed_and_leaves_what_was_held(path, error):
    disk = RefusingDisk()
    ballast = ReservedSpace(path, disk=disk)
    ballast.hold(4096)
    disk.error = error

    with pytest.raises(DiskFull, match="123,456 bytes were needed"):
        ballast.hold(123_456)

    assert 4096 == path.stat().st_size
    ballast.hold(4096)
    disk.error = None
    assert ballast.give_up() is True


def test_a_refusal_is_no_holding(path):
    disk = RefusingDisk()
    disk.error = errno.ENOSPC
    ballast = ReservedSpace(path, disk=disk)
    with pytest.raises(DiskFull):
        ballast.hold(4096)
    disk.error = None
    ballast.hold(4096)

    assert 4096 == path.stat().st_size


def test_a_folder_that_is_not_there_is_told(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageUnwritable):
        ReservedSpace(tmp_path / "file" / "ballast", disk=REAL_DISK).hold(1)


def test_a_file_that_cannot_be_removed_is_told_and_stops_nobody(path, caplog):
    disk = RefusingDisk()
    ballast = ReservedSpace(path, disk=disk)
    ballast.hold(4096)
    disk.error = errno.EROFS

    assert ballast.give_up() is False
    assert ["Could not delete"] == [message[:16] for message in caplog.messages]

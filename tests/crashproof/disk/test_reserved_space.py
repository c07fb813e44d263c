from __future__ import annotations

import errno
from pathlib import Path

import pytest

from crashproof.disk.files import REAL_DISK, Disk
from crashproof.disk.reserved_space import ReservedSpace
from crashproof.errors import DiskFull, StorageUnwritable
from crashproof.testing import FaultyDisk


class RefusingDisk(Disk):
    """Fails to allocate and remove while `error` is set."""

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


def test_a_reservation_takes_space_on_the_disk(path):
    ReservedSpace(path, disk=REAL_DISK).reserve(100_000)

    assert 100_000 == path.stat().st_size
    assert path.stat().st_blocks * 512 >= 100_000


def test_nothing_is_reserved_before_the_first_call(path):
    space = ReservedSpace(path, disk=REAL_DISK)

    assert not path.exists()
    assert space.release() is False


@pytest.mark.parametrize("num_bytes, expected", [(5000, 5000), (4096, 4096), (10, 4096), (0, 4096)])
def test_a_reservation_grows_and_never_shrinks(path, num_bytes, expected):
    space = ReservedSpace(path, disk=REAL_DISK)
    space.reserve(4096)
    space.reserve(num_bytes)

    assert expected == path.stat().st_size


def test_reserving_what_is_reserved_already_costs_no_operation(path, tmp_path):
    disk = FaultyDisk(path.parent, tmp_path / "scratch")
    space = ReservedSpace(path, disk=disk)
    space.reserve(4096)
    before = disk.num_operations
    space.reserve(4096)

    assert before == disk.num_operations


def test_released_space_is_free_and_can_be_reserved_again(path):
    space = ReservedSpace(path, disk=REAL_DISK)
    space.reserve(4096)

    assert space.release() is True
    assert not path.exists()
    assert space.release() is False
    space.reserve(100)
    assert 100 == path.stat().st_size


def test_the_reservation_of_a_killed_predecessor_is_taken_over(path):
    ReservedSpace(path, disk=REAL_DISK).reserve(8192)
    successor = ReservedSpace(path, disk=REAL_DISK)
    successor.reserve(4096)

    assert 8192 == path.stat().st_size
    assert successor.release() is True
    assert not path.exists()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_reports_the_bytes_needed_and_keeps_the_earlier_reservation(path, error):
    disk = RefusingDisk()
    space = ReservedSpace(path, disk=disk)
    space.reserve(4096)
    disk.error = error

    with pytest.raises(DiskFull, match="123,456 bytes were needed"):
        space.reserve(123_456)

    assert 4096 == path.stat().st_size
    space.reserve(4096)
    disk.error = None
    assert space.release() is True


def test_a_failed_reservation_does_not_count(path):
    disk = RefusingDisk()
    disk.error = errno.ENOSPC
    space = ReservedSpace(path, disk=disk)
    with pytest.raises(DiskFull):
        space.reserve(4096)
    disk.error = None
    space.reserve(4096)

    assert 4096 == path.stat().st_size


def test_a_missing_folder_is_reported(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageUnwritable):
        ReservedSpace(tmp_path / "file" / "ballast", disk=REAL_DISK).reserve(1)


def test_a_file_that_cannot_be_removed_is_logged_and_raises_nothing(path, caplog):
    disk = RefusingDisk()
    space = ReservedSpace(path, disk=disk)
    space.reserve(4096)
    disk.error = errno.EROFS

    assert space.release() is False
    assert ["Could not delete"] == [message[:16] for message in caplog.messages]

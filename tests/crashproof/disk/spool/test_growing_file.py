"""A file that grows in sight."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest

from crashproof.disk.files import Disk
from crashproof.disk.spool.growing_file import GrowingFile
from crashproof.errors import CrashproofError, DiskFull, StorageUnwritable
from crashproof.testing import FaultyDisk, PowerLost


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_lines_are_in_sight_once_they_are_flushed(folder):
    file = GrowingFile(folder / "partial")
    file.append(b"one\n")
    before = (folder / "partial").exists()
    file.flush()
    file.append(b"two\n")
    during = (folder / "partial").read_bytes()
    file.close()

    assert (False, b"one\n") == (before, during)


def test_much_is_flushed_by_itself(folder):
    file = GrowingFile(folder / "partial")
    for _ in range(3):
        file.append(b"x" * 40_000)

    assert 80_000 == (folder / "partial").stat().st_size
    file.discard()
    assert [] == list(folder.iterdir())


def test_what_was_there_is_overwritten_by_the_first_line(folder):
    (folder / "partial").write_bytes(b"of a killed process\n" * 100)
    file = GrowingFile(folder / "partial")
    file.append(b"new\n")
    file.flush()
    file.close()

    assert b"new\n" == (folder / "partial").read_bytes()


def test_it_gets_its_name_once_it_is_complete(folder):
    target = folder / "out"
    target.write_bytes(b"old")
    file = GrowingFile(folder / "partial")
    file.append(b"one\n")
    file.flush()
    before = target.read_bytes()
    file.append(b"two\n")
    file.publish(target)

    assert (b"old", b"one\ntwo\n") == (before, target.read_bytes())
    assert [target] == list(folder.iterdir())


def test_without_lines_it_is_an_empty_file(folder):
    (folder / "partial").write_bytes(b"of a killed process\n")
    GrowingFile(folder / "partial").publish(folder / "out")

    assert b"" == (folder / "out").read_bytes()
    assert [folder / "out"] == list(folder.iterdir())


def test_a_file_that_was_never_written_can_be_closed_and_discarded(folder):
    file = GrowingFile(folder / "partial")
    file.close()
    file.discard()

    assert [] == list(folder.iterdir())


def test_a_link_under_the_working_name_leads_nowhere(folder, tmp_path):
    (tmp_path / "elsewhere").write_text("precious")
    (folder / "partial").symlink_to(tmp_path / "elsewhere")
    file = GrowingFile(folder / "partial")
    file.append(b"one\n")

    with pytest.raises(StorageUnwritable):
        file.flush()
    assert "precious" == (tmp_path / "elsewhere").read_text()


class TwoDisks(Disk):
    """The run's folder lies on another file system than the output."""

    def replace(self, source, target):
        if source.parent.name != target.parent.name:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        super().replace(source, target)


def test_it_is_copied_to_another_file_system_and_is_complete_there_or_not_there(folder, tmp_path):
    (tmp_path / "other").mkdir()
    file = GrowingFile(folder / "partial", disk=TwoDisks())
    for number in range(100_000):
        file.append(b"line %d\n" % number)
    file.publish(tmp_path / "other" / "out")

    assert 100_000 == (tmp_path / "other" / "out").read_bytes().count(b"\n")
    assert ([], ["out"]) == (os.listdir(folder), os.listdir(tmp_path / "other"))


def publish(folder: Path, disk: Disk) -> None:
    file = GrowingFile(folder / "partial", disk=disk)
    try:
        file.append(b"new\n")
        file.flush()
        file.append(b"newer\n")
        file.publish(folder / "out")
    except CrashproofError:
        file.discard()
        raise


def prepare(folder: Path) -> None:
    for each in folder.iterdir():
        each.unlink()
    (folder / "out").write_bytes(b"old\n")


def test_whichever_operation_a_full_disk_refuses_the_old_file_or_the_new_one_is_there(folder, tmp_path):
    prepare(folder)
    counting = FaultyDisk(folder, tmp_path / "count")
    publish(folder, counting)
    for number in range(counting.num_operations):
        prepare(folder)
        disk = FaultyDisk(folder, tmp_path / str(number), fails_at=number, error=errno.ENOSPC)
        with suppress(DiskFull):
            publish(folder, disk)
        assert (folder / "out").read_bytes() in (b"old\n", b"new\nnewer\n"), number
        assert ["out"] == os.listdir(folder), number


@pytest.mark.parametrize("world", FaultyDisk.WORLDS)
def test_whenever_the_power_is_lost_the_old_file_or_the_new_one_is_there(folder, tmp_path, world):
    prepare(folder)
    counting = FaultyDisk(folder, tmp_path / "count")
    publish(folder, counting)
    for number in range(counting.num_operations):
        prepare(folder)
        disk = FaultyDisk(folder, tmp_path / f"scratch_{number}", fails_at=number)
        with pytest.raises(PowerLost):
            publish(folder, disk)
        left = tmp_path / f"left_{number}"
        disk.after_power_loss(left, world)
        assert (left / "out").read_bytes() in (b"old\n", b"new\nnewer\n"), number


def test_another_error_than_that_of_two_file_systems_is_told(folder, tmp_path):
    file = GrowingFile(folder / "partial")
    file.append(b"one\n")

    with pytest.raises((StorageUnwritable, OSError)):
        file.publish(tmp_path / "missing" / "out")
    assert b"one\n" == (folder / "partial").read_bytes()

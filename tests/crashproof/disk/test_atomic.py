from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import Any

import pytest

from crashproof.disk.atomic import (
    open_digested_file,
    partial_name,
    publish_folder,
    remove_partials,
    sync_tree,
    write_atomically,
    write_bytes_atomically,
    write_folder_atomically,
)
from crashproof.disk.files import REAL_DISK
from crashproof.errors import DiskFull, StorageUnwritable
from crashproof.testing import FaultyDisk


def test_a_file_is_digested_on_its_way_to_the_disk(tmp_path: Path) -> None:
    written = write_atomically(tmp_path / "file", lambda file: [file.write(b"abc"), file.write(b"def")])

    assert b"abcdef" == written.path.read_bytes()
    assert (6, hashlib.sha256(b"abcdef").hexdigest()) == (written.num_bytes, written.sha256)


def test_a_file_of_an_unfinished_folder_is_digested(tmp_path: Path) -> None:
    with open_digested_file(tmp_path / "shard") as file:
        file.write(b"abc")
        file.write(b"def")

    assert (6, hashlib.sha256(b"abcdef").hexdigest()) == (file.tell(), file.sha256())
    assert b"abcdef" == (tmp_path / "shard").read_bytes()


def test_a_file_of_an_unfinished_folder_that_is_incomplete_raises(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    disk = FaultyDisk(run, tmp_path / "scratch", fails_at=2, error=errno.ENOSPC)

    with pytest.raises(DiskFull, match="The disk is full"), open_digested_file(run / "shard", disk=disk) as file:
        file.write(b"abc")


def test_any_buffer_can_be_written(tmp_path: Path) -> None:
    content = memoryview(bytearray(range(16))).cast("I")

    written = write_atomically(tmp_path / "file", lambda file: file.write(content))

    assert bytes(range(16)) == written.path.read_bytes()


def test_a_write_that_fails_leaves_the_old_file_and_no_partial(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file: object) -> None:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        write_atomically(path, fail)

    assert [path] == list(tmp_path.iterdir())
    assert b"old" == path.read_bytes()


@pytest.mark.parametrize("number", range(4), ids=["opening", "writing", "syncing", "renaming"])
def test_a_full_disk_leaves_the_old_content_at_every_step(tmp_path: Path, number: int) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "file").write_bytes(b"old")
    disk = FaultyDisk(run, tmp_path / "scratch", fails_at=number, error=errno.ENOSPC)

    with pytest.raises(DiskFull, match="The disk is full"):
        write_bytes_atomically(run / "file", b"new content", disk=disk)

    assert b"old" == (run / "file").read_bytes()
    assert ["file"] == [path.name for path in run.iterdir()]


def test_a_name_that_is_taken_by_a_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file" / "inside").mkdir(parents=True)

    with pytest.raises(OSError, match="directory"):
        write_bytes_atomically(tmp_path / "file", b"content")


def test_a_folder_appears_complete(tmp_path: Path) -> None:
    target = tmp_path / "model"

    with write_folder_atomically(target) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "weights").write_bytes(b"1")
        assert not target.exists()

    assert b"1" == (target / "inner" / "weights").read_bytes()
    assert [target] == list(tmp_path.iterdir())


def test_a_folder_whose_filling_fails_does_not_appear(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), write_folder_atomically(tmp_path / "model") as partial:
        (partial / "weights").write_bytes(b"1")
        raise RuntimeError

    assert [] == list(tmp_path.iterdir())


def test_a_folder_holds_nothing_of_an_earlier_attempt(tmp_path: Path) -> None:
    target = tmp_path / "model"
    partial_name(target).mkdir()
    (partial_name(target) / "old piece").write_bytes(b"0")

    with write_folder_atomically(target) as partial:
        (partial / "weights").write_bytes(b"1")

    assert ["weights"] == [path.name for path in target.iterdir()]


def test_a_folder_that_is_there_already_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"old")
    (tmp_path / "partial").mkdir()

    with pytest.raises((StorageUnwritable, OSError)):
        publish_folder(tmp_path / "partial", tmp_path / "model")

    assert b"old" == (tmp_path / "model" / "weights").read_bytes()


def test_leftovers_of_interrupted_writes_are_removed_and_nothing_else(tmp_path: Path) -> None:
    partial_name(tmp_path / "file").write_bytes(b"half")
    partial_name(tmp_path / "folder").mkdir()
    (tmp_path / ".hidden").write_bytes(b"the user's")

    remove_partials(tmp_path)

    assert [".hidden"] == [path.name for path in tmp_path.iterdir()]


def test_a_tree_is_synced_file_by_file(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "inner").mkdir(parents=True)
    (run / "inner" / "a").write_bytes(b"1")
    (run / "b").write_bytes(b"2")
    disk = FaultyDisk(run, tmp_path / "scratch")

    sync_tree(run, disk)

    # Two files and two folders.
    assert 4 == disk.num_operations
    sync_tree(run / "b", REAL_DISK)


def test_a_large_buffer_is_digested_while_it_is_written(tmp_path: Path) -> None:
    content = bytes(range(256)) * 8192

    def fill(file: Any) -> None:
        assert file.writable()
        file.write(b"small")
        file.write(content)

    written = write_atomically(tmp_path / "file", fill)

    assert b"small" + content == written.path.read_bytes()
    assert hashlib.sha256(b"small" + content).hexdigest() == written.sha256


def test_a_folder_removed_while_it_is_filled_causes_no_second_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="gave up"), write_folder_atomically(tmp_path / "model") as partial:
        partial.rmdir()
        raise RuntimeError("gave up")

    assert [] == list(tmp_path.iterdir())

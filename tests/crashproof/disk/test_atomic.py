from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from crashproof.digests import SHA256
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
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.errors import DiskFull, StorageUnwritable
from crashproof.testing import FaultyDisk


def blake3_of(content: bytes) -> str:
    return f"blake3:{blake3(content).hexdigest()}"


def test_a_file_is_digested_on_its_way_to_the_disk(tmp_path: Path) -> None:
    written = write_atomically(tmp_path / "file", lambda file: [file.write(b"abc"), file.write(b"def")])

    assert b"abcdef" == written.path.read_bytes()
    assert (6, blake3_of(b"abcdef")) == (written.num_bytes, written.digest)


def test_a_file_is_digested_by_the_algorithm_that_is_asked_for(tmp_path: Path) -> None:
    written = write_atomically(tmp_path / "file", lambda file: file.write(b"abc"), algorithm=SHA256)

    # The example of FIPS 180-2.
    assert "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" == written.digest


def test_a_file_of_an_unfinished_folder_is_digested(tmp_path: Path) -> None:
    with open_digested_file(tmp_path / "shard") as file:
        file.write(b"abc")
        file.write(b"def")

    assert (6, blake3_of(b"abcdef")) == (file.tell(), file.digest())
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
    content = bytes(range(256)) * (80 << 10)

    def fill(file: Any) -> None:
        assert file.writable()
        file.write(b"small")
        file.write(content)

    written = write_atomically(tmp_path / "file", fill)

    assert b"small" + content == written.path.read_bytes()
    assert blake3_of(b"small" + content) == written.digest


def test_a_folder_removed_while_it_is_filled_causes_no_second_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="gave up"), write_folder_atomically(tmp_path / "model") as partial:
        partial.rmdir()
        raise RuntimeError("gave up")

    assert [] == list(tmp_path.iterdir())


class Wrapping(Exception):
    pass


def raises_its_own(file: Any) -> None:
    try:
        file.write(b"content")
    except OSError as error:
        raise Wrapping("saving failed") from error


def hides_the_cause(file: Any) -> None:
    passes_over_it(file)
    raise Wrapping("the archive is shorter than it should be")


def passes_over_it(file: Any) -> None:
    try:
        file.write(b"content")
    except OSError:
        return


def goes_on_writing(file: Any) -> None:
    for _ in range(3):
        try:
            file.write(b"content")
        except OSError:
            continue


CARELESS = pytest.mark.parametrize("write", [raises_its_own, hides_the_cause, passes_over_it, goes_on_writing])


@CARELESS
def test_a_full_disk_is_reported_whatever_the_code_that_writes_makes_of_it(tmp_path: Path, write: Any) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "file").write_bytes(b"old")
    disk = FaultyDisk(run, tmp_path / "scratch", fails_at=1, error=errno.ENOSPC)

    with pytest.raises(DiskFull, match="The disk is full"):
        write_atomically(run / "file", write, disk=disk)

    assert [b"old"] == [each.read_bytes() for each in run.iterdir()]


@CARELESS
def test_a_broken_disk_is_reported_by_its_own_error(tmp_path: Path, write: Any) -> None:
    run = tmp_path / "run"
    run.mkdir()
    disk = FaultyDisk(run, tmp_path / "scratch", fails_at=1, error=errno.EIO)

    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(run / "file", write, disk=disk)


@CARELESS
def test_a_file_of_a_folder_reports_its_failure_too(tmp_path: Path, write: Any) -> None:
    run = tmp_path / "run"
    run.mkdir()
    disk = FaultyDisk(run, tmp_path / "scratch", fails_at=1, error=errno.ENOSPC)

    with pytest.raises(DiskFull), open_digested_file(run / "shard", disk=disk) as file:
        write(file)


def test_an_error_of_the_code_that_writes_passes_unchanged(tmp_path: Path) -> None:
    def read_what_is_missing(file: object) -> None:
        (tmp_path / "words.txt").read_bytes()

    with pytest.raises(FileNotFoundError, match=r"words\.txt"):
        write_atomically(tmp_path / "file", read_what_is_missing)


def test_the_error_of_a_write_is_raised_where_its_leftover_cannot_be_removed(tmp_path: Path) -> None:
    class Broken(Disk):
        def write(self, file: int, content: bytes | memoryview) -> int:  # type: ignore[override]
            raise OSError(errno.ENOSPC, "No space left on device")

        def remove_file(self, path: Path) -> None:
            raise OSError(errno.EIO, "Input/output error")

        def remove_tree(self, path: Path) -> None:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(DiskFull):
        write_bytes_atomically(tmp_path / "file", b"content", disk=Broken())
    with pytest.raises(DiskFull), write_folder_atomically(tmp_path / "folder", disk=Broken()):
        raise OSError(errno.ENOSPC, "No space left on device")


class Advised(Disk):
    """Notes which bytes the disk was to begin with."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []

    def begin_writeback(self, file: int, offset: int, num_bytes: int) -> None:
        self.ranges.append((offset, num_bytes))
        super().begin_writeback(file, offset, num_bytes)


def test_the_disk_begins_with_a_large_file_while_it_is_written(tmp_path: Path) -> None:
    disk, tensor = Advised(), bytes(5 << 20)

    write_atomically(tmp_path / "file", lambda file: [file.write(tensor) for _ in range(6)], disk=disk)

    assert [(0, 10 << 20), (10 << 20, 10 << 20), (20 << 20, 10 << 20)] == disk.ranges


def test_the_disk_is_not_asked_to_begin_with_a_small_file(tmp_path: Path) -> None:
    disk = Advised()

    write_atomically(tmp_path / "file", lambda file: file.write(bytes(1 << 20)), disk=disk)

    assert [] == disk.ranges


def test_nothing_that_a_link_leads_to_is_removed_as_a_leftover(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").write_bytes(b"theirs")
    run = tmp_path / "run"
    run.mkdir()
    partial_name(run / "a").symlink_to(tmp_path / "theirs")
    partial_name(run / "b").symlink_to(tmp_path / "theirs" / "file")
    partial_name(run / "c").symlink_to(tmp_path / "nowhere")
    os.mkfifo(partial_name(run / "d"))

    remove_partials(run)

    assert [] == list(run.iterdir())
    assert b"theirs" == (tmp_path / "theirs" / "file").read_bytes()


def test_a_write_does_not_go_through_a_link_that_has_its_temporary_name(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_bytes(b"theirs")
    partial_name(tmp_path / "file").symlink_to(tmp_path / "theirs")

    with pytest.raises(StorageUnwritable):
        write_bytes_atomically(tmp_path / "file", b"content")

    assert b"theirs" == (tmp_path / "theirs").read_bytes()


def test_pipes_and_links_to_folders_in_a_tree_are_not_synced(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "weights").write_bytes(b"1")
    (tree / "round").symlink_to(tree)
    (tree / "again").symlink_to(tmp_path)
    os.mkfifo(tree / "pipe")

    sync_tree(tree, REAL_DISK)

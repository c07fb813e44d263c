from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from crashproof.disk import files
from crashproof.disk.files import REAL_DISK, above_standard, storage_errors
from crashproof.errors import DiskFull, StorageUnwritable


def test_missing_parents_are_made(tmp_path: Path) -> None:
    REAL_DISK.make_folders(tmp_path / "a" / "b" / "c")
    REAL_DISK.make_folders(tmp_path / "a" / "b" / "c")

    assert (tmp_path / "a" / "b" / "c").is_dir()


@pytest.mark.parametrize(
    "number, kind",
    [
        (errno.ENOSPC, DiskFull),
        (errno.EDQUOT, DiskFull),
        (errno.EFBIG, DiskFull),
        (errno.EROFS, StorageUnwritable),
        (errno.EACCES, StorageUnwritable),
    ],
    ids=["no space", "no quota", "too large", "read-only", "no permission"],
)
def test_an_error_of_the_system_says_what_to_do(tmp_path: Path, number: int, kind: type[Exception]) -> None:
    with pytest.raises(kind) as refusal, storage_errors(tmp_path / "folder" / "file"):
        raise OSError(number, "as the system says")

    assert str(tmp_path) in str(refusal.value)
    assert refusal.value.hint  # type: ignore[attr-defined]


def test_any_other_error_passes_unchanged(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="as the system says"), storage_errors(tmp_path):
        raise OSError(errno.EIO, "as the system says")


def test_free_space_is_known(tmp_path: Path) -> None:
    assert REAL_DISK.free_bytes(tmp_path) > 0


def test_a_tree_and_a_file_are_removed(tmp_path: Path) -> None:
    (tmp_path / "tree" / "inner").mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"1")

    REAL_DISK.remove_tree(tmp_path / "tree")
    REAL_DISK.remove_file(tmp_path / "file")
    REAL_DISK.remove_file(tmp_path / "file")

    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "number, is_error", [(errno.EINVAL, False), (errno.EIO, True)], ids=["cannot be asked", "broken"]
)
def test_a_file_system_that_cannot_sync_folders_is_trusted_and_a_broken_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_error: bool
) -> None:
    def refuse(file: int) -> None:
        raise OSError(number, "refused")

    # The one place where the system itself must be made to refuse.
    monkeypatch.setattr(files.os, "fsync", refuse)

    if is_error:
        with pytest.raises(OSError, match="refused"):
            REAL_DISK.sync_folder(tmp_path)
    else:
        REAL_DISK.sync_folder(tmp_path)
    assert tmp_path.is_dir()


def test_a_descriptor_of_a_standard_stream_is_exchanged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    unchanged = above_standard(file)
    monkeypatch.setattr(files, "_FIRST_FREE", 100)
    exchanged = above_standard(file)

    assert file == unchanged
    assert exchanged >= 100
    assert not os.get_inheritable(exchanged)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)
    os.close(exchanged)

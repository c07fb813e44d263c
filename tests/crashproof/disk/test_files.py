from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from crashproof.disk import files
from crashproof.disk.files import REAL_DISK, errors_of_other_code, storage_errors
from crashproof.errors import DiskFull, FileSizeLimit, QuotaExceeded, StorageUnwritable, TooManyOpenFiles


def test_missing_parents_are_made(tmp_path: Path) -> None:
    REAL_DISK.make_folders(tmp_path / "a" / "b" / "c")
    REAL_DISK.make_folders(tmp_path / "a" / "b" / "c")

    assert (tmp_path / "a" / "b" / "c").is_dir()


@pytest.mark.parametrize(
    "number, kind",
    [
        (errno.ENOSPC, DiskFull),
        (errno.EDQUOT, QuotaExceeded),
        (errno.EFBIG, FileSizeLimit),
        (errno.EMFILE, TooManyOpenFiles),
        (errno.ENFILE, TooManyOpenFiles),
        (errno.EROFS, StorageUnwritable),
        (errno.EACCES, StorageUnwritable),
    ],
    ids=["space", "quota", "file size", "open files", "of the machine", "read-only", "no permission"],
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


def test_what_takes_no_advice_is_written_all_the_same(tmp_path: Path) -> None:
    read, write = os.pipe()

    REAL_DISK.begin_writeback(write, 0, 5)
    os.write(write, b"bytes")

    assert b"bytes" == os.read(read, 5)
    os.close(read)
    os.close(write)


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


def test_the_file_size_limit_is_named_and_no_free_space() -> None:
    program = """if True:
        import resource, sys
        from pathlib import Path
        from crashproof import write_atomically
        from crashproof.errors import DiskFull
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        try:
            write_atomically(Path(sys.argv[1]), lambda file: file.write(bytes(10_000)))
        except DiskFull as error:
            print(type(error).__name__, error)
    """
    with tempfile.TemporaryDirectory() as folder:
        said = subprocess.run(
            [sys.executable, "-c", program, f"{folder}/x"], capture_output=True, text=True, check=True
        ).stdout

    assert said.startswith("FileSizeLimit")
    assert "at most 4,096 bytes (RLIMIT_FSIZE)" in said
    assert "ulimit -f" in said
    assert "free" not in said


def test_without_a_limit_of_the_process_it_is_the_file_system_s(tmp_path: Path) -> None:
    with pytest.raises(FileSizeLimit, match="the file system allows no file that large"), storage_errors(tmp_path):
        raise OSError(errno.EFBIG, "File too large")


class WrappedError(Exception):
    pass


def wrapped(error: Exception) -> Exception:
    try:
        raise WrappedError("saving failed") from error
    except WrappedError as outer:
        return outer


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "error, kind",
    [
        (FULL, DiskFull),
        (wrapped(FULL), DiskFull),
        (wrapped(wrapped(FULL)), DiskFull),
        (wrapped(OSError(errno.EDQUOT, "Disk quota exceeded")), QuotaExceeded),
        (WrappedError("I/O error: No space left on device (os error 28)"), DiskFull),
        (wrapped(OSError(errno.EMFILE, "Too many open files")), TooManyOpenFiles),
        (wrapped(StorageUnwritable(Path("x"), reason="read-only")), StorageUnwritable),
        (wrapped(DiskFull(Path("x"))), DiskFull),
    ],
)
def test_a_full_disk_is_recognised_in_what_other_code_raises(
    tmp_path: Path, error: Exception, kind: type[Exception]
) -> None:
    with pytest.raises(kind), errors_of_other_code(tmp_path / "model", writes_in=tmp_path / "partial"):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no such optimizer"),
        OSError(errno.EIO, "Input/output error"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/data/words.txt"),
        PermissionError(errno.EACCES, "Permission denied"),
        DiskFull(Path("elsewhere")),
    ],
)
def test_what_other_code_raises_for_another_reason_passes_unchanged(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as found, errors_of_other_code(tmp_path, writes_in=tmp_path):
        raise error

    assert error is found.value


def test_a_file_of_the_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageUnwritable), errors_of_other_code(tmp_path, writes_in=tmp_path / "partial"):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "partial" / "weights"))


def test_an_unknown_error_of_a_file_of_the_folder_passes_unchanged(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input"), errors_of_other_code(tmp_path, writes_in=tmp_path):
        raise OSError(errno.EIO, "Input/output error", str(tmp_path / "weights"))


def test_a_disk_that_was_full_before_this_write_began_is_not_its_reason(tmp_path: Path) -> None:
    try:
        raise FULL
    except OSError:
        with pytest.raises(ValueError), errors_of_other_code(tmp_path, writes_in=tmp_path):
            raise ValueError("no such optimizer") from None


def test_any_failure_while_nothing_is_free_is_put_down_to_the_disk_and_keeps_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_free_bytes", lambda path: 4096)

    words = r"4,096 bytes are free\. .* raised RuntimeError: unexpected pos 46 vs 0\."
    with pytest.raises(DiskFull, match=words), errors_of_other_code(tmp_path, writes_in=tmp_path):
        raise RuntimeError("unexpected pos\n 46 vs 0")

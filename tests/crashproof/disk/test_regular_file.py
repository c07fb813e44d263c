from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from crashproof.disk.files import REAL_DISK
from crashproof.disk.lock import holder_of
from crashproof.disk.regular_file import next_data, open_to_read, read_errors, read_small
from crashproof.errors import FileUnreadable, StorageUnwritable, TooManyOpenFiles


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


OTHERS = pytest.mark.parametrize(
    "make, kind",
    [(pipe, "a named pipe"), (listening_socket, "a socket"), (device, "a device"), (folder, "a folder")],
    ids=["pipe", "socket", "device", "folder"],
)


@OTHERS
def test_what_is_no_regular_file_is_refused_at_once_and_named(tmp_path, make, kind):
    make(tmp_path / "x")

    with pytest.raises(FileUnreadable, match=f"it is {kind}, not a regular file"):
        open_to_read(tmp_path / "x")
    assert None is holder_of(tmp_path / "x")


@OTHERS
def test_nothing_is_written_to_what_is_no_regular_file(tmp_path, make, kind):
    make(tmp_path / "x")

    for opened in (REAL_DISK.open_to_append, REAL_DISK.open_anew, REAL_DISK.open_to_sync):
        with pytest.raises((StorageUnwritable, IsADirectoryError, OSError)):
            os.close(opened(tmp_path / "x"))


def test_a_link_to_a_regular_file_is_followed_for_reading_and_never_replaced_by_a_write(tmp_path):
    (tmp_path / "outside").write_bytes(b"theirs")
    (tmp_path / "link").symlink_to(tmp_path / "outside")

    assert b"theirs" == read_small(tmp_path / "link", most_bytes=10)
    with pytest.raises(OSError, match="symbolic link"):
        REAL_DISK.open_anew(tmp_path / "link")
    assert b"theirs" == (tmp_path / "outside").read_bytes()


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "x").open("wb") as file:
        file.truncate(1 << 40)

    with pytest.raises(FileUnreadable, match="1,099,511,627,776 bytes, more than 1,000"):
        read_small(tmp_path / "x", most_bytes=1000)


def test_a_missing_file_is_a_missing_file(tmp_path):
    (tmp_path / "x").write_bytes(b"")

    for path in (tmp_path / "none", tmp_path / "x" / "below"):
        with pytest.raises(FileNotFoundError):
            open_to_read(path)


@pytest.mark.parametrize(
    "number, kind, words",
    [
        (errno.EMFILE, TooManyOpenFiles, r"this process has reached its limit of [\d,]+ open files.*ulimit -n"),
        (errno.ENFILE, TooManyOpenFiles, "this machine .* limit of open files"),
        (errno.EIO, FileUnreadable, "cannot be read: Input/output error"),
    ],
)
def test_why_a_file_cannot_be_read_is_said_in_words(tmp_path, number, kind, words):
    with pytest.raises(kind, match=words), read_errors(tmp_path):
        raise OSError(number, os.strerror(number))


def test_holes_are_found_and_the_place_of_a_reader_is_left_alone(tmp_path):
    with (tmp_path / "x").open("wb") as file:
        file.seek(1 << 30)
        file.write(b"data")
        file.truncate(1 << 40)

    with open_to_read(tmp_path / "x") as file:
        assert b"\0\0" == file.read(2)
        assert (1 << 20) < next_data(file.fileno(), 1 << 20) <= 1 << 30
        assert 1 << 40 == next_data(file.fileno(), 1 << 31)
        assert b"\0\0" == file.read(2)


def test_where_a_file_system_knows_no_holes_everything_is_data(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"1")

    def refuse(file: int, offset: int, how: int) -> int:
        if how == os.SEEK_DATA:
            raise OSError(errno.EINVAL, "no")
        return 0

    with (tmp_path / "x").open("rb") as file:
        monkeypatch.setattr(os, "lseek", refuse)
        assert 7 == next_data(file.fileno(), 7)
        monkeypatch.undo()

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from crashproof.disk import queueing_journal
from crashproof.disk.files import Disk
from crashproof.disk.journal import Journal, Line, scan
from crashproof.disk.queueing_journal import QueueingJournal
from crashproof.errors import DiskFull, StorageError, StorageUnwritable
from crashproof.records.lines.checksummed_line import add_checksum
from crashproof.records.snapshots import JournalMark


class SmallDisk(Disk):
    def __init__(self) -> None:
        self.is_full = False
        self.error = errno.ENOSPC
        self.num_cuts = 0

    def write(self, file: int, content: bytes | memoryview) -> int:  # type: ignore[override]
        if self.is_full:
            raise OSError(self.error, os.strerror(self.error))
        return os.write(file, content)

    def truncate(self, file: int, num_bytes: int) -> None:
        self.num_cuts += 1
        if self.is_full:
            raise OSError(self.error, os.strerror(self.error))
        super().truncate(file, num_bytes)


def line(number: int) -> bytes:
    return add_checksum(b'{"v":1,"number":%d}' % number)


@pytest.fixture
def disk() -> SmallDisk:
    return SmallDisk()


@pytest.fixture
def journal(tmp_path: Path, disk: SmallDisk) -> QueueingJournal:
    return QueueingJournal(Journal(tmp_path / "j", mark=JournalMark(), disk=disk))


def written(journal: QueueingJournal) -> list[bytes]:
    return [piece.content for piece in scan(journal.journal.path) if isinstance(piece, Line)]


def test_lines_are_queued_in_order_while_the_disk_is_full(
    journal: QueueingJournal, disk: SmallDisk, caplog: pytest.LogCaptureFixture
) -> None:
    journal.append(line(1))
    disk.is_full = True
    journal.append(line(2))
    journal.append(line(3))
    assert 2 == journal.num_queued
    disk.is_full = False
    journal.append(line(4))

    assert [line(number) for number in (1, 2, 3, 4)] == written(journal)
    assert 0 == journal.num_queued
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert ["The disk is full", "There is space again: 2 queued lines"] == [
        next(
            start
            for start in ("The disk is full", "There is space again: 2 queued lines")
            if warning.startswith(start)
        )
        for warning in warnings
    ]


@pytest.mark.parametrize(
    "error, words",
    [
        (errno.EDQUOT, "The disk quota is used up"),
        (errno.EROFS, "cannot be written: Read-only file system"),
        (errno.EACCES, "cannot be written: Permission denied"),
        (errno.EIO, "Input/output error"),
        (errno.ESTALE, "Stale file handle"),
    ],
    ids=["quota", "read-only", "no permission", "broken", "stale handle"],
)
def test_lines_are_queued_whatever_the_disk_refuses_them_for(
    journal: QueueingJournal, disk: SmallDisk, caplog: pytest.LogCaptureFixture, error: int, words: str
) -> None:
    journal.append(line(1))
    disk.is_full, disk.error = True, error
    for number in (2, 3, 4):
        journal.append(line(number))
    assert (3, False) == (journal.num_queued, journal.write_queued())
    assert words in str(journal.refusal)
    with pytest.raises((StorageError, OSError), match=words):
        journal.append_now(line(5))
    disk.is_full = False
    journal.append(line(6))

    assert [line(number) for number in (1, 2, 3, 4, 6)] == written(journal)
    assert [True, True] == [words in caplog.messages[0], "3 queued lines were written" in caplog.messages[1]]
    # Nothing of a refused line is in the file, so nothing is cut off, and nothing is said of a torn line.
    assert (2, 0) == (len(caplog.messages), disk.num_cuts)


def test_a_line_that_must_be_written_now_is_refused_and_not_queued(journal: QueueingJournal, disk: SmallDisk) -> None:
    disk.is_full = True
    journal.append(line(1))
    with pytest.raises(DiskFull):
        journal.append_now(line(2))
    disk.is_full = False

    assert journal.write_queued()
    assert journal.write_queued()
    assert [line(1)] == written(journal)
    assert len(line(1)) == journal.append_now(line(3))


def test_memory_is_bounded(journal: QueueingJournal, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queueing_journal, "MAX_QUEUED_BYTES", 3 * len(line(1)))
    disk.is_full = True
    for number in range(3):
        journal.append(line(number))

    with pytest.raises(DiskFull):
        journal.append(line(3))

    assert 3 == journal.num_queued
    assert not journal.write_queued()


def test_a_full_memory_names_what_refuses_the_lines(
    journal: QueueingJournal, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queueing_journal, "MAX_QUEUED_BYTES", len(line(1)))
    disk.is_full, disk.error = True, errno.EROFS
    journal.append(line(1))

    with pytest.raises(StorageUnwritable, match="Read-only"):
        journal.append(line(2))


def test_where_not_even_one_line_fits_into_memory_the_disk_is_full(
    journal: QueueingJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queueing_journal, "MAX_QUEUED_BYTES", 1)
    journal.journal.abandon()

    with pytest.raises(DiskFull):
        journal.append(line(1))


def test_lines_that_an_abandoned_journal_refuses_are_rescued_in_order(
    journal: QueueingJournal, disk: SmallDisk, tmp_path: Path
) -> None:
    disk.is_full = True
    journal.append(line(1))
    disk.is_full = False
    journal.journal.abandon()
    has_written_all = journal.write_queued()
    journal.append(line(2))
    journal.rescue(tmp_path / "kept", disk=disk)
    journal.rescue(tmp_path / "kept", disk=disk)

    assert (False, 0, []) == (has_written_all, journal.num_queued, written(journal))
    assert line(1) + line(2) == (tmp_path / "kept").read_bytes()


def test_a_line_after_an_abandonment_is_queued_without_a_word_of_a_full_disk(
    journal: QueueingJournal, caplog: pytest.LogCaptureFixture
) -> None:
    journal.journal.abandon()
    journal.append(line(1))

    assert (1, []) == (journal.num_queued, caplog.messages)

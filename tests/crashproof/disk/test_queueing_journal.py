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
from crashproof.errors import DiskFull
from crashproof.records.checksummed_line import add_checksum
from crashproof.records.snapshots import JournalMark


class SmallDisk(Disk):
    def __init__(self) -> None:
        self.is_full = False

    def write(self, file: int, content: bytes | memoryview) -> int:  # type: ignore[override]
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.write(file, content)


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

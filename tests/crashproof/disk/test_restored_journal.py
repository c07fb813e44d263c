from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from crashproof.disk.journal import Journal
from crashproof.disk.restored_journal import Restoration, restore_journal
from crashproof.errors import DiskFull
from crashproof.records.lines.checksummed_line import add_checksum
from crashproof.records.snapshots import JournalMark
from crashproof.testing import FaultyDisk

LINES = [add_checksum(b'{"v":1,"number":%d}' % number) for number in range(5)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def disk(root: Path, tmp_path: Path) -> FaultyDisk:
    return FaultyDisk(root, tmp_path / "scratch")


@pytest.fixture
def journal(root: Path, disk: FaultyDisk) -> Iterator[Journal]:
    journal = Journal(root / "j", mark=JournalMark(), disk=disk)
    for line in LINES:
        journal.append(line)
    yield journal
    journal.close()


def restore(journal: Journal, disk: FaultyDisk, known: list[bytes]) -> Restoration:
    return restore_journal(journal, "was altered", known, quarantine=journal.path.parent / "aside", disk=disk)


def test_a_journal_that_lost_its_name_is_copied_without_what_was_added(journal: Journal, disk: FaultyDisk) -> None:
    with journal.path.open("ab") as file:
        file.write(b"torn")
    journal.path.unlink()
    found = restore(journal, disk, [])
    journal.append(LINES[0])

    assert (5, 0, None) == (found.num_lines, found.num_lost, found.moved_to)
    assert [*LINES, LINES[0]] == journal.path.read_bytes().splitlines(keepends=True)
    assert "j was altered, and is written again with 5 lines: no line is lost" == str(found)


def test_of_an_edited_one_what_is_left_comes_before_what_is_known(journal: Journal, disk: FaultyDisk) -> None:
    journal.path.write_bytes(LINES[1] + b"edited\n" + LINES[4])
    found = restore(journal, disk, LINES[3:])

    assert [LINES[1], *LINES[3:]] == journal.path.read_bytes().splitlines(keepends=True)
    assert 2 == found.num_lost
    assert found.moved_to is not None
    assert b"edited\n" in found.moved_to.read_bytes()
    assert str(found).endswith(f"lines lost: 2; what was in its place is {found.moved_to}")
    assert journal.mark == JournalMark(
        num_bytes=journal.path.stat().st_size, num_lines=3, last_line_crc=LINES[4][-11:-3].decode()
    )


def test_on_a_full_disk_everything_stays_as_it_was_and_the_next_try_succeeds(
    journal: Journal, disk: FaultyDisk, root: Path
) -> None:
    journal.path.unlink()
    full = FaultyDisk(root, root.parent / "of the full disk", fails_at=1, error=errno.ENOSPC)

    with pytest.raises(DiskFull):
        restore(journal, full, [])
    assert [] == list(root.iterdir())
    restore(journal, disk, [])
    assert b"".join(LINES) == journal.path.read_bytes()

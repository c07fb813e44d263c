from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crashproof.disk.journal import Journal
from crashproof.disk.lock import WriterLock
from crashproof.disk.sole_writer import SoleWriter
from crashproof.records.lines.checksummed_line import add_checksum
from crashproof.records.snapshots import JournalMark

LINE = add_checksum(b'{"v":1}')


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "j", mark=JournalMark())
    yield journal
    journal.close()


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[WriterLock]:
    lock = WriterLock(tmp_path / "lock", now=lambda: 7.0)
    yield lock
    lock.release()


@pytest.fixture
def sole(lock: WriterLock, journal: Journal) -> SoleWriter:
    return SoleWriter(lock, [journal], attempt=1)


def name_other(lock: WriterLock, *, since: float) -> None:
    lock.path.write_text(json.dumps({"host": "node8", "pid": 812, "since": since}))


def add_foreign_line(journal: Journal) -> None:
    with journal.path.open("ab") as file:
        file.write(LINE)


def found(sole: SoleWriter, moment: float = 0.0) -> tuple[str, int | None] | None:
    intrusion = sole.find_intrusion(moment, guard=contextlib.nullcontext())
    return intrusion and (intrusion.what, intrusion.other and intrusion.other.pid)


def test_an_undisturbed_writer_goes_on(sole: SoleWriter, journal: Journal) -> None:
    journal.append(LINE)

    assert None is found(sole)


def test_a_newer_name_in_the_lock_file_is_enough(sole: SoleWriter, lock: WriterLock) -> None:
    name_other(lock, since=8.0)

    assert ("lock names that process", 812) == found(sole)


def test_foreign_lines_after_an_older_name_are_too(sole: SoleWriter, lock: WriterLock, journal: Journal) -> None:
    # The clocks of two machines differ.
    name_other(lock, since=6.0)
    before = found(sole)
    add_foreign_line(journal)

    assert (None, ("j has lines of another process", 812)) == (before, found(sole))


def test_foreign_lines_alone_are_borne_for_a_while(sole: SoleWriter, journal: Journal) -> None:
    results = []
    for moment in (0.0, 29.0, 31.0):
        add_foreign_line(journal)
        results.append(found(sole, moment))

    assert [None, None, ("j has lines of another process", None)] == results


def test_a_line_in_the_making_is_not_foreign(
    sole: SoleWriter, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["has lines of another process", None])
    monkeypatch.setattr(journal, "find_interference", lambda: next(answers))

    assert None is found(sole)


@pytest.mark.parametrize(
    ("alter", "what"),
    [
        (lambda path: path.unlink(), "was removed or renamed"),
        (lambda path: path.with_name("copy").replace(path), "was replaced by another file"),
        (lambda path: path.write_bytes(b""), "was shortened"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"}", b" }")), "was edited"),
        (lambda path: path.write_bytes(path.read_bytes() + b"no record\n"), "was edited"),
    ],
    ids=["removed", "replaced", "emptied", "edited", "appended to"],
)
def test_what_a_tool_does_to_a_journal_is_told_and_stops_nobody(
    sole: SoleWriter, journal: Journal, alter: Callable[[Path], object], what: str
) -> None:
    journal.append(LINE)
    journal.path.with_name("copy").write_bytes(LINE)
    alter(journal.path)

    assert (None, {journal.path: what}) == (found(sole), sole.altered)


def test_a_journal_in_whose_place_a_later_attempt_writes_stops_its_writer(sole: SoleWriter, journal: Journal) -> None:
    journal.path.unlink()
    journal.path.write_bytes(add_checksum(b'{"v":1,"attempt":2}'))

    assert ("j has lines of a newer attempt", None) == found(sole)


def test_a_device_in_the_place_of_a_journal_is_no_other_writer(sole: SoleWriter, journal: Journal) -> None:
    journal.path.unlink()
    journal.path.symlink_to("/dev/zero")

    assert (None, {journal.path: "was replaced by another file"}) == (found(sole), sole.altered)

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashproof.disk.files import Disk
from crashproof.disk.journal import (
    Damage,
    Interference,
    Journal,
    JournalAbandoned,
    Line,
    append_durably,
    line_continues,
    read_line,
    scan,
    scan_backwards,
)
from crashproof.disk.journal_repair import repair_journal
from crashproof.errors import DiskFull, FileUnreadable, RecordTooLarge, StorageUnwritable
from crashproof.records.lines.checksummed_line import MAX_LINE_BYTES, MAX_NESTING, add_checksum
from crashproof.records.snapshots import JournalMark
from crashproof.testing import FaultyDisk


def line(number: int, padding: int = 0) -> bytes:
    return add_checksum(b'{"v":1,"number":%d,"padding":"%s"}' % (number, b"x" * padding))


def opened(path: Path, disk: Disk | None = None) -> Journal:
    return Journal(path, mark=JournalMark(), disk=disk or Disk())


def intact(path: Path) -> list[bytes]:
    return [piece.content for piece in scan(path) if isinstance(piece, Line)]


def test_lines_come_back_in_order_with_their_offsets(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j")
    offsets = [journal.append(line(number)) for number in range(5)]

    found = list(scan(tmp_path / "j"))

    assert [Line(offset, line(number)) for number, offset in enumerate(offsets)] == found
    assert found[-1].end == journal.num_bytes
    assert line(3) == read_line(tmp_path / "j", offset=offsets[3], num_bytes=len(line(3)))
    assert None is read_line(tmp_path / "j", offset=offsets[3] + 1, num_bytes=len(line(3)))


def test_a_missing_journal_has_no_lines(tmp_path: Path) -> None:
    assert [] == list(scan(tmp_path / "none"))


def test_a_journal_knows_where_it_ends(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j")
    journal.append(line(1))
    journal.append(line(2))

    assert (journal.num_bytes, 2) == (journal.mark.num_bytes, journal.mark.num_lines)
    assert journal.mark.last_line_crc.encode() in line(2)


def test_a_sync_is_needed_until_it_is_done(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j")
    assert not journal.has_unsynced
    journal.append(line(1))
    assert journal.has_unsynced

    journal.sync()
    journal.sync()

    assert not journal.has_unsynced
    journal.close()


def test_lines_of_a_killed_predecessor_are_synced_too(tmp_path: Path) -> None:
    opened(tmp_path / "j").append(line(1))

    assert opened(tmp_path / "j").has_unsynced


def test_a_journal_continues_as_long_as_it_has_the_line_of_a_mark(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j")
    journal.append(line(1))
    mark = journal.mark
    journal.append(line(2))

    assert line_continues(tmp_path / "j", mark)
    assert not line_continues(tmp_path / "j", JournalMark(num_bytes=mark.num_bytes, last_line_crc="00000000"))
    assert not line_continues(tmp_path / "missing", mark)
    assert line_continues(tmp_path / "missing", JournalMark())


def test_lines_are_appended_durably_to_a_closed_journal(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    journal = opened(tmp_path / "run" / "j")
    journal.append(line(1))
    disk = FaultyDisk(tmp_path / "run", tmp_path / "scratch")

    append_durably(tmp_path / "run" / "j", [line(2), line(3)], mark=journal.mark, disk=disk)

    assert [line(1), line(2), line(3)] == intact(tmp_path / "run" / "j")
    assert 3 == disk.num_operations


def test_threads_share_syncs(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    disk = FaultyDisk(run, tmp_path / "scratch")
    journal = opened(run / "j", disk)
    for number in range(10):
        journal.append(line(number))
    before = disk.num_operations

    threads = [threading.Thread(target=journal.sync) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 1 == disk.num_operations - before


@pytest.mark.parametrize("blocks", [1, 3], ids=["within one block", "over several blocks"])
def test_backwards_gives_the_same_lines_in_reverse(tmp_path: Path, blocks: int) -> None:
    lines = [line(number, padding=number % 700) for number in range(2500 * blocks)]
    (tmp_path / "j").write_bytes(b"".join(lines) + b"torn")

    found = [piece.content for piece in scan_backwards(tmp_path / "j", end=(tmp_path / "j").stat().st_size)]

    assert list(reversed(lines)) == found


def test_backwards_reads_a_line_longer_than_a_block(tmp_path: Path) -> None:
    lines = [line(1), line(2, padding=3 << 20), line(3)]
    (tmp_path / "j").write_bytes(b"".join(lines))

    found = [piece.content for piece in scan_backwards(tmp_path / "j", end=(tmp_path / "j").stat().st_size)]

    assert list(reversed(lines)) == found


class NearlyFullDisk(Disk):
    """Accepts a few more bytes, in short writes; with `never_cuts`, truncating fails too."""

    def __init__(self, room: int, *, never_cuts: bool = False) -> None:
        self.room = room
        self.never_cuts = never_cuts

    def write(self, file: int, content: bytes | memoryview) -> int:  # type: ignore[override]
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = os.write(file, bytes(content)[: self.room])
        self.room -= written
        return written

    def truncate(self, file: int, num_bytes: int) -> None:
        if self.never_cuts:
            raise OSError(errno.EIO, "Input/output error")
        super().truncate(file, num_bytes)


def test_a_short_write_is_finished(tmp_path: Path) -> None:
    class Slow(Disk):
        def write(self, file: int, content: bytes | memoryview) -> int:  # type: ignore[override]
            return os.write(file, bytes(content)[:7])

    journal = opened(tmp_path / "j", Slow())
    journal.append(line(1))

    assert [line(1)] == intact(tmp_path / "j")
    assert len(line(1)) == journal.num_bytes


def test_a_line_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    disk = NearlyFullDisk(room=len(line(1)) + 10)
    journal = opened(tmp_path / "j", disk)
    journal.append(line(1))
    with pytest.raises(DiskFull, match="bytes were needed"):
        journal.append(line(2))
    disk.room = 1000
    journal.append(line(3))

    assert (line(1) + line(3)) == (tmp_path / "j").read_bytes()


def test_a_torn_line_that_cannot_be_removed_is_ended_by_a_newline(tmp_path: Path) -> None:
    disk = NearlyFullDisk(room=len(line(1)) + 10, never_cuts=True)
    journal = opened(tmp_path / "j", disk)
    journal.append(line(1))
    with pytest.raises(DiskFull):
        journal.append(line(2))
    disk.room = 1000
    offset = journal.append(line(3))

    assert [line(1), line(3)] == intact(tmp_path / "j")
    assert line(3) == read_line(tmp_path / "j", offset=offset, num_bytes=len(line(3)))
    assert [line(2)[:10]] == [
        piece.content.rstrip(b"\n") for piece in scan(tmp_path / "j") if isinstance(piece, Damage)
    ]


def test_a_torn_end_that_cannot_be_ended_yet_never_becomes_part_of_a_line(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(line(1) + line(2)[:10])
    disk = NearlyFullDisk(room=0)
    journal = opened(tmp_path / "j", disk)
    for number in (3, 4):
        with pytest.raises(DiskFull):
            journal.append(line(number))
    disk.room = 1000
    journal.append(line(5))

    assert [line(1), line(5)] == intact(tmp_path / "j")


def test_an_intact_journal_needs_no_repair(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(line(1))

    assert [] == repair_journal(tmp_path / "j", quarantine=tmp_path / "aside")
    assert not (tmp_path / "aside").exists()


@settings(max_examples=150)
@given(st.data())
def test_a_repair_keeps_exactly_the_intact_lines_whatever_is_damaged(data: st.DataObject) -> None:
    import tempfile

    pieces = data.draw(
        st.lists(
            st.one_of(
                st.integers(0, 999).map(line),
                st.binary(max_size=30).map(lambda junk: junk.replace(b"\n", b"") + b"\n"),
                st.tuples(st.integers(0, 99), st.integers(1, 40)).map(lambda cut: line(cut[0])[: cut[1]] + b"\n"),
            ),
            max_size=12,
        )
    )
    tail = data.draw(st.sampled_from([b"", line(5)[:9], b"\0\0"]))
    with tempfile.TemporaryDirectory() as folder:
        path, aside = Path(folder) / "j", Path(folder) / "aside" / "j"
        path.write_bytes(b"".join(pieces) + tail)
        expected = intact(path)

        damages = repair_journal(path, quarantine=aside)

        assert expected == intact(path)
        kept = aside.read_bytes() if damages else b""
        assert all(damage.content.rstrip(b"\n") in kept for damage in damages)
        assert [] == repair_journal(path, quarantine=aside)


def test_damage_names_its_reason(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b"corrupt\ntorn")

    assert ["its checksum does not match", "the last write was cut off"] == [
        piece.reason for piece in scan(tmp_path / "j") if isinstance(piece, Damage)
    ]


TERABYTE = 1 << 40


def nested(levels: int) -> bytes:
    return add_checksum(b'{"a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}")


def damages(path: Path) -> list[Damage]:
    return [piece for piece in scan(path) if isinstance(piece, Damage)]


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """Two good lines around a terabyte of nothing, and another terabyte behind them."""
    path = tmp_path / "j"
    with path.open("wb") as file:
        file.write(line(1))
        file.seek(TERABYTE)
        file.write(b"\n" + line(2))
        file.truncate(2 * TERABYTE)
    return path


def test_a_hole_of_a_terabyte_is_one_damage_with_its_offset(sparse: Path) -> None:
    assert [line(1), line(2)] == intact(sparse)
    hole, tail = damages(sparse)
    assert (len(line(1)), TERABYTE + 1) == (hole.offset, hole.end)
    assert 2 * TERABYTE == tail.end
    assert (False, True) == (hole.is_torn_tail, tail.is_torn_tail)
    assert "longer than a line may be" in hole.reason
    assert len(hole.content) < 100_000


def test_a_hole_of_a_terabyte_is_passed_over_backwards(sparse: Path) -> None:
    assert [line(2), line(1)] == [piece.content for piece in scan_backwards(sparse, end=2 * TERABYTE)]


def test_a_hole_at_the_beginning_is_passed_over_backwards(tmp_path: Path) -> None:
    with (tmp_path / "j").open("wb") as file:
        file.truncate(TERABYTE)

    assert [] == list(scan_backwards(tmp_path / "j", end=TERABYTE))


def test_a_repair_keeps_a_sparse_journal_without_copying_it(sparse: Path, tmp_path: Path) -> None:
    (tmp_path / "aside").mkdir()
    (tmp_path / "aside" / "j").write_bytes(b"earlier")

    found = repair_journal(sparse, quarantine=tmp_path / "aside" / "j")

    assert line(1) + line(2) == sparse.read_bytes()
    kept = tmp_path / "aside" / "j.1"
    assert {kept} == {each.moved_to for each in found}
    assert 2 * TERABYTE == kept.stat().st_size
    assert kept.stat().st_blocks * 512 < 1 << 20
    assert b"earlier" == (tmp_path / "aside" / "j").read_bytes()


def test_damage_that_is_found_to_be_too_long_further_up_is_kept_without_copying_it(sparse: Path) -> None:
    with sparse.open("r+b") as file:
        file.truncate(TERABYTE + 1 + len(line(2)))
        file.seek(0, 2)
        file.write(b"broken\n")
    behind = TERABYTE + 1 + len(line(2))

    repair_journal(sparse, quarantine=sparse.with_name("aside"), start=behind)

    assert line(1) + line(2) == sparse.read_bytes()


def test_a_record_behind_a_long_hole_on_the_same_line_is_kept(tmp_path: Path) -> None:
    with (tmp_path / "j").open("wb") as file:
        file.seek(TERABYTE)
        file.write(line(7))

    repair_journal(tmp_path / "j", quarantine=tmp_path / "aside")

    assert line(7) == (tmp_path / "j").read_bytes()


def test_a_line_of_the_greatest_length_is_read_and_a_longer_one_is_not_written(tmp_path: Path) -> None:
    room = MAX_LINE_BYTES - len(line(1))
    journal = opened(tmp_path / "j")
    journal.append(line(1, padding=room))
    with pytest.raises(RecordTooLarge, match="67,108,865 bytes"):
        journal.append(line(1, padding=room + 1))
    journal.append(line(2))

    assert [line(1, padding=room), line(2)] == intact(tmp_path / "j")
    assert [line(2), line(1, padding=room)] == [
        each.content for each in scan_backwards(tmp_path / "j", end=journal.num_bytes)
    ]


def test_a_line_that_is_longer_is_damage_and_its_neighbours_are_read(tmp_path: Path) -> None:
    long = b"x" * (MAX_LINE_BYTES + (3 << 20)) + b"\n"
    (tmp_path / "j").write_bytes(line(1) + long + line(2))

    assert [line(1), line(2)] == intact(tmp_path / "j")
    assert [len(long)] == [each.num_bytes for each in damages(tmp_path / "j")]
    assert [line(2), line(1)] == [
        each.content for each in scan_backwards(tmp_path / "j", end=(tmp_path / "j").stat().st_size)
    ]


def test_a_line_that_is_nested_too_deeply_is_damage_and_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(nested(100_000) + nested(MAX_NESTING) + nested(MAX_NESTING + 1))

    assert [nested(MAX_NESTING)] == intact(tmp_path / "j")
    assert ["it is nested more than 400 levels deep"] * 2 == [each.reason for each in damages(tmp_path / "j")]
    with pytest.raises(RecordTooLarge, match="400 levels deep"):
        opened(tmp_path / "other").append(nested(MAX_NESTING + 1))


def test_brackets_in_texts_are_no_nesting(tmp_path: Path) -> None:
    text = add_checksum(b'{"a":"' + b'[{\\"' * 1000 + b'","b":[' + b"[],{}," * 1000 + b"[]]}")
    opened(tmp_path / "j").append(text)

    assert [text] == intact(tmp_path / "j")


def test_very_many_damaged_lines_are_a_few_pieces_and_every_good_line_is_read(tmp_path: Path) -> None:
    rubbish = b"x\n" * 3_000_000
    (tmp_path / "j").write_bytes(line(1) + rubbish + line(2) + rubbish + line(3) + rubbish + b"torn")

    found = damages(tmp_path / "j")

    assert [line(1), line(2), line(3)] == intact(tmp_path / "j")
    assert len(found) < 1_100
    assert 3 * len(rubbish) + 4 == sum(each.num_bytes for each in found)
    repair_journal(tmp_path / "j", quarantine=tmp_path / "aside")
    assert line(1) + line(2) + line(3) == (tmp_path / "j").read_bytes()


def test_very_many_damaged_lines_are_kept_to_the_last_byte(tmp_path: Path) -> None:
    rubbish = b"".join(b"%d\n" % number for number in range(100_000)) + b"y" * (2 << 20) + b"\nend\n"
    (tmp_path / "j").write_bytes(line(1) + rubbish)

    repair_journal(tmp_path / "j", quarantine=tmp_path / "aside")

    assert rubbish == (tmp_path / "aside").read_bytes()
    assert line(1) == (tmp_path / "j").read_bytes()


def test_damage_longer_than_a_line_is_kept_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crashproof.disk.journal.reading.MAX_LINE_BYTES", 1000)
    monkeypatch.setattr("crashproof.disk.journal.lines.MAX_LINE_BYTES", 1000)
    rubbish = b"".join(b"%d\n" % number for number in range(3_000))
    (tmp_path / "j").write_bytes(rubbish + line(1))

    repair_journal(tmp_path / "j", quarantine=tmp_path / "aside")

    assert rubbish == (tmp_path / "aside").read_bytes()
    assert line(1) == (tmp_path / "j").read_bytes()


def test_a_search_for_records_in_a_line_made_of_beginnings_and_ends_comes_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b'{"v":1' * 20_000 + b',"crc":"00000000"}' * 20_000 + b"\n" + line(1))

    repair_journal(tmp_path / "j", quarantine=tmp_path / "aside")

    assert line(1) == (tmp_path / "j").read_bytes()


def test_a_pipe_for_a_journal_is_refused_and_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "j")

    for read in (
        lambda: list(scan(tmp_path / "j")),
        lambda: list(scan_backwards(tmp_path / "j", end=100)),
        lambda: read_line(tmp_path / "j", offset=0, num_bytes=10),
        lambda: repair_journal(tmp_path / "j", quarantine=tmp_path / "aside"),
    ):
        with pytest.raises(FileUnreadable, match="a named pipe"):
            read()
    with pytest.raises(StorageUnwritable, match="a named pipe"):
        opened(tmp_path / "j")
    assert not line_continues(tmp_path / "j", JournalMark(num_bytes=100, last_line_crc="00000000"))
    assert not line_continues(tmp_path / "j", JournalMark(num_bytes=3, last_line_crc="00000000"))
    assert [tmp_path / "j"] == list(tmp_path.iterdir())


def test_a_repair_that_finds_the_disk_full_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    content = line(1) + b"broken\n" + line(2)
    for number in range(20):
        run = tmp_path / str(number) / "run"
        run.mkdir(parents=True)
        (run / "j").write_bytes(content)
        disk = FaultyDisk(run, run.with_name("scratch"), fails_at=number, error=errno.ENOSPC)
        try:
            repair_journal(run / "j", quarantine=run / "aside" / "j", disk=disk)
        except DiskFull:
            assert (run / "j").read_bytes() in (content, line(1) + line(2))
            assert not list(run.glob(".*partial"))
            continue
        break
    assert 5 < number < 19


def replace_file(path: Path) -> None:
    path.with_name("new").write_bytes(path.read_bytes())
    path.with_name("new").replace(path)


def add_line(path: Path) -> None:
    with path.open("ab") as file:
        file.write(line(9))


@pytest.mark.parametrize(
    "act, expected",
    [
        pytest.param(lambda path: None, None, id="nothing"),
        pytest.param(add_line, Interference.GREW, id="grew"),
        pytest.param(lambda path: path.unlink(), Interference.REMOVED, id="removed"),
        pytest.param(lambda path: path.rename(path.with_name("old")), Interference.REMOVED, id="renamed"),
        pytest.param(replace_file, Interference.REPLACED, id="replaced"),
    ],
)
def test_what_something_else_did_to_the_file_is_found(tmp_path: Path, act: Any, expected: object) -> None:
    journal = opened(tmp_path / "j")
    journal.append(line(1))
    act(tmp_path / "j")

    assert expected is journal.find_interference()


def test_a_file_system_that_does_not_respond_shows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = opened(tmp_path / "j")

    def fail(file: int) -> os.stat_result:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", fail)
        found = journal.find_interference()

    assert None is found


def test_lines_of_another_process_are_not_overwritten(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j")
    journal.append(line(1))
    add_line(tmp_path / "j")
    journal.accept_foreign_lines()
    offset = journal.append(line(2))

    assert None is journal.find_interference()
    assert journal.has_foreign_lines
    assert line(2) == read_line(tmp_path / "j", offset=offset, num_bytes=len(line(2)))
    assert [line(1), line(9), line(2)] == intact(tmp_path / "j")


def test_a_failed_write_does_not_cut_off_what_another_process_has_written(tmp_path: Path) -> None:
    disk = NearlyFullDisk(room=len(line(1)))
    journal = opened(tmp_path / "j", disk)
    journal.append(line(1))
    add_line(tmp_path / "j")
    with pytest.raises(DiskFull):
        journal.append(line(2))

    assert None is journal.find_interference()
    disk.room = 1000
    journal.append(line(3))
    assert [line(1), line(9), line(3)] == intact(tmp_path / "j")


def test_an_abandoned_journal_takes_no_more_lines_and_can_be_rescued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crashproof.disk.journal.writer._BLOCK_BYTES", 20)
    journal = opened(tmp_path / "j")
    for number in range(5):
        journal.append(line(number))
    os.write(journal._file, b"torn")
    (tmp_path / "j").unlink()
    journal.abandon()
    with pytest.raises(JournalAbandoned):
        journal.append(line(6))
    journal.rescue(tmp_path / "quarantine" / "j.box-7")

    rescued = (tmp_path / "quarantine" / "j.box-7").read_bytes()
    assert b"".join(line(number) for number in range(5)) + b"torn\n" == rescued


def test_an_empty_journal_is_rescued_as_nothing(tmp_path: Path) -> None:
    opened(tmp_path / "j").rescue(tmp_path / "kept")

    assert b"" == (tmp_path / "kept").read_bytes()


def test_a_reader_takes_lines_that_were_joined_backwards_too(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(line(1) + line(2)[:-1] + line(3)[:-1] + b"rubbish\r\n" + line(4)[:-1] + b"\r\n")
    size = (tmp_path / "j").stat().st_size

    assert [line(4), line(3), line(2), line(1)] == [each.content for each in scan_backwards(tmp_path / "j", end=size)]
    assert [line(1), line(2), line(3), line(4)] == intact(tmp_path / "j")


def test_a_line_appended_to_one_without_a_newline_is_a_line_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(line(1)[:-1])
    journal = opened(tmp_path / "j")
    journal.append(line(2))
    journal.close()

    assert line(1) + line(2) == (tmp_path / "j").read_bytes()


def test_an_indented_record_that_does_not_end_is_damage(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b"{\n" + b'  "a": 1,\n' * 9 + line(1))

    assert [line(1)] == intact(tmp_path / "j")


def test_an_indented_record_that_was_altered_is_damage(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b'{\n  "a": 1\n}\n' + line(1))

    assert [line(1)] == intact(tmp_path / "j")


def test_a_file_that_its_server_has_forgotten_is_not_as_written(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j")
    journal.append(line(1))
    journal.close()

    assert not journal.is_as_written()


def test_a_megabyte_of_blanks_between_two_lines_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(line(1) + b" \n" * (1 << 20) + line(2))

    assert [line(1).rstrip(), line(2).rstrip()] == [each.content.rstrip() for each in scan(tmp_path / "j")]

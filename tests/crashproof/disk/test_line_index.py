from __future__ import annotations

import errno
import hashlib
import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashproof.disk.line_index import LineIndex
from crashproof.records.lines.checksummed_line import add_checksum
from crashproof.records.snapshots import JournalMark
from crashproof.testing import FaultyDisk, PowerLost

MARK = JournalMark(num_bytes=1000, num_lines=3, last_line_crc="0123abcd")
OTHER_MARK = JournalMark(num_bytes=2000, num_lines=7, last_line_crc="abcd0123")

keys = st.text(st.characters(exclude_categories=[]), max_size=3)
places = st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 2**32 - 1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "index"


def saved(path: Path, *known: tuple[str, tuple[int, int]], mark: JournalMark = MARK) -> bytes:
    index = LineIndex(path)
    for key, place in known:
        index.put(key, place)
    index.save(mark)
    return path.read_bytes()


def test_the_newest_place_of_each_key_is_found(path):
    index = LineIndex(path)
    index.put("a", (0, 10))
    index.put("b", (10, 20))
    index.put("a", (30, 40))

    assert [(30, 40), (10, 20), None] == [index.find(key) for key in ("a", "b", "c")]


def test_what_was_saved_is_found_by_the_next_process_and_so_is_where_it_ends(path):
    saved(path, ("a", (0, 10)), ("b", (10, 20)))
    index = LineIndex(path)

    assert MARK == index.load()
    assert [(0, 10), (10, 20), None] == [index.find(key) for key in ("a", "b", "c")]


def test_a_rebuilt_index_has_the_newest_place_of_each_key_alone(path):
    index = LineIndex(path)
    index.put("old", (0, 5))

    index.rebuild([("a", (0, 10)), ("b", (10, 10)), ("a", (20, 10))])

    assert [(20, 10), (10, 10), None] == [index.find(key) for key in ("a", "b", "old")]


def test_a_missing_file_indexes_nothing(path, caplog):
    assert JournalMark() == LineIndex(path).load()
    assert [] == caplog.messages


def test_an_index_of_nothing_can_be_saved(path):
    saved(path)
    index = LineIndex(path)

    assert (MARK, 0, None) == (index.load(), len(index), index.find("a"))


def test_places_as_far_as_files_reach_are_kept(path):
    saved(path, ("a", (2**64 - 1, 2**32 - 1)))
    index = LineIndex(path)
    index.load()

    assert (2**64 - 1, 2**32 - 1) == index.find("a")


def test_a_key_of_half_a_character_is_a_key(path):
    saved(path, ("\ud800", (5, 6)))
    index = LineIndex(path)
    index.load()

    assert ((5, 6), None) == (index.find("\ud800"), index.find("\ud801"))


@settings(max_examples=60)
@given(st.lists(st.tuples(keys, places, st.sampled_from(["put", "drop", "save", "load"])), max_size=30))
def test_whatever_is_put_dropped_saved_and_loaded_it_is_a_dict(tmp_path_factory, steps):
    path = tmp_path_factory.mktemp("index") / "index"
    index, model = LineIndex(path), {}
    for key, place, what in steps:
        if what in ("put", "drop"):
            model[key] = place if what == "put" else None
            index.put(key, place) if what == "put" else index.drop(key)
        else:
            index.save(MARK)
        if what == "load":
            index = LineIndex(path)
            index.load()
        assert model == {each: index.find(each) for each in model}
    assert len(index) <= len(steps)


def test_a_dropped_key_is_gone_from_the_file_too(path):
    index = LineIndex(path)
    index.put("a", (0, 10))
    index.put("b", (10, 10))
    index.save(MARK)
    index.drop("a")

    assert index.find("a") is None
    index.save(MARK)
    again = LineIndex(path)
    again.load()
    assert (None, (10, 10), 1) == (again.find("a"), again.find("b"), len(again))


def test_a_key_may_come_back_after_it_was_dropped(path):
    saved(path, ("a", (0, 10)))
    index = LineIndex(path)
    index.load()
    index.drop("a")
    index.put("a", (50, 5))

    assert (50, 5) == index.find("a")


def test_forgetting_is_for_good(path):
    saved(path, ("a", (0, 10)))
    index = LineIndex(path)
    index.load()
    index.put("b", (10, 10))
    index.forget()

    assert (None, None, 0) == (index.find("a"), index.find("b"), len(index))


def test_it_reports_unsaved_places(path):
    index = LineIndex(path)
    before = index.has_unsaved
    index.put("a", (0, 10))
    behind = index.has_unsaved
    index.save(MARK)

    assert (False, True, False) == (before, behind, index.has_unsaved)


def test_a_save_is_due_once_enough_is_unsaved(path):
    index = LineIndex(path)
    for number in range(19_999):
        index.put(str(number), (number, 1))
    before = index.is_save_due
    index.put("one more", (0, 1))
    due = index.is_save_due
    index.save(MARK)

    assert (False, True, False) == (before, due, index.is_save_due)
    assert 20_000 == len(index)


def test_many_keys_are_all_found_after_several_saves(path):
    index = LineIndex(path)
    for number in range(3000):
        index.put(str(number), (number, 1 + number % 7))
        if number % 500 == 499:
            index.save(MARK)
            index = LineIndex(path)
            index.load()

    assert [(number, 1 + number % 7) for number in range(3000)] == [index.find(str(number)) for number in range(3000)]
    assert index.find("3000") is None


def test_the_file_is_what_its_description_says(path):
    content = saved(path, ("a", (7, 9)), ("b", (11, 13)), mark=OTHER_MARK)
    head, _, rest = content.partition(b"\n")

    said = msgspec.json.decode(head)
    del said["crc"]
    assert {"v": 1, "num_bytes": 2000, "num_lines": 7, "last_line_crc": "abcd0123", "num_entries": 2} == said
    entries = sorted(
        hashlib.blake2b(key, digest_size=16).digest() + offset.to_bytes(8) + length.to_bytes(4)
        for key, offset, length in ((b"a", 7, 9), (b"b", 11, 13))
    )
    assert b"".join(entries) == rest[:-32]
    assert hashlib.sha256(content[:-32]).digest() == rest[-32:]


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_a_flipped_bit_anywhere_is_detected_and_the_file_is_ignored(path, caplog):
    content = saved(path, ("a", (0, 10)), ("b", (10, 10)))
    found = []
    for place in range(len(content)):
        path.write_bytes(flipped(content, place))
        index = LineIndex(path)
        found.append((index.load(), index.find("a"), len(index)))

    assert [(JournalMark(), None, 0)] * len(content) == found
    assert {f"{path} is damaged or of another version; it is rebuilt from the journal."} == set(caplog.messages)


def test_a_file_truncated_anywhere_is_detected(path):
    content = saved(path, ("a", (0, 10)), ("b", (10, 10)))
    found = []
    for length in range(len(content)):
        path.write_bytes(content[:length])
        found.append(LineIndex(path).load())

    assert [JournalMark()] * len(content) == found


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b'{"v":2,"num_bytes":0,"num_lines":0,"last_line_crc":"","num_entries":0}', id="later version"),
        pytest.param(b'{"v":1,"num_bytes":0}', id="fields missing"),
        pytest.param(b'{"v":1,"num_bytes":0,"num_lines":0,"last_line_crc":"","num_entries":5}', id="too few entries"),
    ],
)
def test_an_intact_file_of_another_kind_is_ignored(path, head):
    content = add_checksum(head)
    path.write_bytes(content + hashlib.sha256(content).digest())

    assert JournalMark() == LineIndex(path).load()


def test_a_folder_in_its_place_is_no_index(path):
    path.mkdir()

    assert JournalMark() == LineIndex(path).load()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS], ids=["full disk", "broken", "read-only"])
def test_a_failed_save_leaves_the_old_file_and_everything_is_found(path, tmp_path, caplog, error):
    old = saved(path, ("a", (0, 10)))
    counting = FaultyDisk(path.parent, tmp_path / "scratch")
    LineIndex(path, disk=counting).save(MARK)
    path.write_bytes(old)
    for number in range(counting.num_operations):
        disk = FaultyDisk(path.parent, tmp_path / f"scratch_{number}", fails_at=number, error=error)
        index = LineIndex(path, disk=disk)
        index.load()
        index.put("b", (10, 10))
        index.save(OTHER_MARK)

        assert [(0, 10), (10, 10)] == [index.find(key) for key in ("a", "b")]
        # The last operation, the sync of the folder, comes after the rename.
        assert (number == counting.num_operations - 1) or old == path.read_bytes()
        path.write_bytes(old)
    assert counting.num_operations == sum("stays as it was" in message for message in caplog.messages)


def test_what_a_failed_save_did_not_write_is_in_the_next_one(path, tmp_path):
    disk = FaultyDisk(path.parent, tmp_path / "scratch", fails_at=0, error=errno.ENOSPC)
    index = LineIndex(path, disk=disk)
    index.put("a", (0, 10))
    index.save(MARK)
    index.put("b", (10, 10))
    index.save(OTHER_MARK)
    again = LineIndex(path)

    assert OTHER_MARK == again.load()
    assert [(0, 10), (10, 10)] == [again.find(key) for key in ("a", "b")]


@pytest.mark.parametrize("world", FaultyDisk.WORLDS)
def test_a_power_loss_leaves_the_old_file_or_the_new_one(path, tmp_path, world):
    saved(path, ("a", (0, 10)))
    counting = FaultyDisk(path.parent, tmp_path / "scratch")
    LineIndex(path, disk=counting).save(MARK)
    marks = []
    for number in range(counting.num_operations):
        saved(path, ("a", (0, 10)))
        disk = FaultyDisk(path.parent, tmp_path / f"scratch_{number}", fails_at=number)
        index = LineIndex(path, disk=disk)
        index.load()
        index.put("b", (10, 10))
        with pytest.raises(PowerLost):
            index.save(OTHER_MARK)
        left = tmp_path / f"left_{number}"
        disk.after_power_loss(left, world, seed=number)
        marks.append(LineIndex(left / path.name).load())

    assert {MARK, OTHER_MARK} >= set(marks)
    assert MARK == marks[0]


def test_threads_may_put_and_find_while_it_is_saved(path):
    index = LineIndex(path)
    missed = []

    def put_and_find(first: int) -> None:
        for number in range(first, 4000, 4):
            index.put(str(number), (number, 1))
            if index.find(str(number)) != (number, 1):
                missed.append(number)

    threads = [threading.Thread(target=put_and_find, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        index.save(MARK)
    index.save(MARK)
    again = LineIndex(path)
    again.load()

    assert [] == missed
    assert [(number, 1) for number in range(4000)] == [again.find(str(number)) for number in range(4000)]

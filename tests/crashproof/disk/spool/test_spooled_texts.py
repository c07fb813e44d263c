"""Texts by key on disk."""

from __future__ import annotations

import errno
import gc
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashproof.disk.files import Disk
from crashproof.disk.spool.spooled_texts import SpooledTexts
from crashproof.errors import DiskFull
from crashproof.testing import FaultyDisk

keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=2)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@settings(max_examples=50)
@given(st.lists(st.tuples(keys, st.none() | texts), max_size=30))
def test_it_is_a_dict(tmp_path_factory, changes):
    spooled, expected = SpooledTexts(tmp_path_factory.mktemp("run")), {}
    for key, text in changes:
        if text is not None:
            expected.pop(key, None)
            expected[key] = spooled[key] = text
        elif key in expected:
            del spooled[key], expected[key]

    assert expected == spooled
    assert list(expected.items()) == list(spooled.items())
    assert len(expected) == len(spooled)


def test_what_is_not_there_is_missing(folder):
    spooled = SpooledTexts(folder)

    assert (0, False, None, []) == (len(spooled), "a" in spooled, spooled.get("a"), list(spooled))
    assert 7 not in spooled
    with pytest.raises(KeyError):
        del spooled["a"]


def test_thousands_are_found_again_in_a_few_bytes_each(folder):
    spooled = SpooledTexts(folder)
    for number in range(45_000):
        spooled[str(number)] = f"reason {number}"

    assert (45_000, "reason 7", "reason 44999") == (len(spooled), spooled["7"], spooled["44999"])
    assert 45_000 == sum(1 for _ in spooled)


def test_nobody_else_sees_the_file_and_nothing_is_left_of_it(folder):
    num_open = len(os.listdir("/proc/self/fd"))
    spooled = SpooledTexts(folder)
    before = list(folder.iterdir())
    spooled["a"] = "text"
    during = list(folder.iterdir())
    del spooled
    gc.collect()

    assert ([], []) == (before, during)
    assert num_open == len(os.listdir("/proc/self/fd"))


def test_what_a_killed_process_left_under_the_name_does_no_harm(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    (folder / ".texts.crashproof-partial").symlink_to(elsewhere)
    spooled = SpooledTexts(folder)
    spooled["a"] = "text"

    assert {"a": "text"} == spooled
    assert "precious" == elsewhere.read_text()


def test_half_a_character_is_spelled_out(folder):
    spooled = SpooledTexts(folder)
    spooled["a"] = "x\ud800"

    assert "x\\ud800" == spooled["a"]


def test_a_text_that_the_disk_refuses_is_not_there_and_later_ones_are(folder, tmp_path):
    count = FaultyDisk(folder, tmp_path / "count")
    fill(SpooledTexts(folder, disk=count), refused=0)
    for number in range(count.num_operations):
        disk = FaultyDisk(folder, tmp_path / str(number), fails_at=number, error=errno.ENOSPC)
        spooled = SpooledTexts(folder, disk=disk)
        fill(spooled, refused=1)

        assert all(spooled[key] == f"text {key}" for key in spooled)


def fill(spooled: SpooledTexts, *, refused: int) -> None:
    num_refused = 0
    for key in "abc":
        try:
            spooled[key] = f"text {key}"
        except (DiskFull, OSError):
            num_refused += 1
            assert key not in spooled
    assert num_refused <= refused
    assert 3 - num_refused == len(spooled) == len(list(spooled))


def test_a_disk_that_writes_little_at_a_time_is_enough(folder):
    class ShortWrites(Disk):
        def write(self, file, content):
            return os.write(file, bytes(content)[:3])

    spooled = SpooledTexts(folder, disk=ShortWrites())
    spooled["a"] = "a longer text"

    assert "a longer text" == spooled["a"]

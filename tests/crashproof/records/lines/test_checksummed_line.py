from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashproof.records.lines.checksummed_line import CHECKSUM_BYTES, add_checksum, is_intact, version_of
from crashproof.records.lines.reformatted_line import find_records

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
records = st.builds(lambda value: {"v": 1, "value": value}, json_values)


def checksummed(record: dict) -> bytes:
    return add_checksum(msgspec.json.encode(record))


def test_a_sealed_line_is_one_json_object_with_its_checksum_last():
    line = checksummed({"v": 1, "step": 7, "loss": 2.5})

    assert b'{"v":1,"step":7,"loss":2.5,"crc":"251c13ec"}\n' == line
    assert ["v", "step", "loss", "crc"] == list(json.loads(line))


def test_a_seal_always_adds_the_same_number_of_bytes():
    payload = b'{"v":1}'

    assert len(payload) - 1 + CHECKSUM_BYTES == len(add_checksum(payload))


@settings(max_examples=100)
@given(records)
def test_a_checksummed_line_is_intact_and_keeps_its_content(record):
    line = checksummed(record)

    assert is_intact(line)
    assert record == {name: value for name, value in json.loads(line).items() if name != "crc"}
    assert 1 == line.count(b"\n")


@settings(max_examples=150)
@given(records, st.data())
def test_one_flipped_bit_breaks_the_seal(record, data):
    line = bytearray(checksummed(record))
    line[data.draw(st.integers(0, len(line) - 1))] ^= 1 << data.draw(st.integers(0, 7))

    assert not is_intact(bytes(line))


@settings(max_examples=100)
@given(records, st.data())
def test_no_part_of_a_line_is_intact(record, data):
    line = checksummed(record)
    start = data.draw(st.integers(0, len(line) - 1))
    end = data.draw(st.integers(start, len(line) - (start == 0)))

    assert not is_intact(line[start:end])


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\n", id="empty-line"),
        pytest.param(b"{}\n", id="no-checksum"),
        pytest.param(b',"crc":"00000000"}\n', id="only-a-checksum"),
        pytest.param(b"\0" * 64 + b"\n", id="zeros"),
    ],
)
def test_a_line_without_a_checksum_is_not_intact(line):
    assert not is_intact(line)


@pytest.mark.parametrize(
    "record, expected",
    [
        pytest.param({"v": 3, "step": 1}, 3, id="first"),
        pytest.param({"event": "new", "later": True, "v": 7}, 7, id="last"),
        pytest.param({"step": 1}, 0, id="none"),
    ],
)
def test_a_line_names_its_version(record, expected):
    assert expected == version_of(checksummed(record))


ONE, TWO, EVENT = (
    checksummed({"v": 1, "a": 1}),
    checksummed({"v": 1, "b": 2}),
    checksummed({"event": "paused", "c": 3}),
)
NESTED = checksummed({"event": "checkpoint_recorded", "checkpoint": {"metrics": {"v": 1, "step": 5}, "size": 3}})


@pytest.mark.parametrize(
    "damaged, expected",
    [
        pytest.param(ONE[:10] + TWO, [TWO], id="a-torn-piece-before-a-line"),
        pytest.param(ONE[:-1] + TWO, [ONE, TWO], id="a-newline-that-was-lost"),
        pytest.param(ONE[:-1] + b"X" + TWO, [ONE, TWO], id="a-newline-that-rotted"),
        pytest.param(b"\0\0\0" + EVENT, [EVENT], id="zeros-before-a-line"),
        pytest.param(ONE[:-1] + EVENT[:-1] + TWO, [ONE, EVENT, TWO], id="three-lines-in-one"),
        pytest.param(ONE[:-1] + b"garbage\n", [ONE], id="garbage-behind-a-line"),
        pytest.param(TWO[:12] + NESTED, [NESTED], id="a-record-that-holds-another-record"),
        pytest.param(NESTED[:-1] + b"\0" + ONE, [NESTED, ONE], id="behind-a-record-that-holds-another"),
        pytest.param(ONE[:-3], [], id="only-a-torn-piece"),
        pytest.param(b"no json at all\n", [], id="garbage"),
        pytest.param(b"", [], id="nothing"),
    ],
)
def test_intact_lines_are_recovered_from_joined_ones(damaged, expected):
    assert expected == [each.line for each in find_records(damaged)]


@settings(max_examples=100)
@given(st.lists(records, min_size=1, max_size=4), st.binary(max_size=6))
def test_records_without_newlines_between_them_are_all_saved(written, piece):
    lines = [checksummed(record) for record in written]
    joined = piece.replace(b"\n", b"") + b"".join(line[:-1] for line in lines) + b"\n"

    assert lines == [each.line for each in find_records(joined)]

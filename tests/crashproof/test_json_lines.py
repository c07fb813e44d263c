from __future__ import annotations

import pytest

from crashproof.errors import DataError
from crashproof.json_lines import read_objects


@pytest.fixture
def write(tmp_path):
    def write_file(content: bytes):
        path = tmp_path / "lines.jsonl"
        path.write_bytes(content)
        return path

    return write_file


@pytest.mark.parametrize(
    "content, expected",
    [
        pytest.param(b"", [], id="empty"),
        pytest.param(b'{"a":1}\n{"a":2}\n', [(1, {"a": 1}), (2, {"a": 2})], id="two-lines"),
        pytest.param(b'{"a":1}', [(1, {"a": 1})], id="no-line-break-at-the-end"),
        pytest.param(b'\n  \n{"a":1}\n\n', [(3, {"a": 1})], id="blank-lines"),
        pytest.param(b'{"a":1}\r\n{"a":2}\r\n', [(1, {"a": 1}), (2, {"a": 2})], id="windows"),
        pytest.param(b'\xef\xbb\xbf{"a":1}\n', [(1, {"a": 1})], id="byte-order-mark"),
        pytest.param('{"a":"\u2028\x85"}'.encode(), [(1, {"a": "\u2028\x85"})], id="line-separators-of-unicode"),
    ],
)
def test_each_line_that_is_not_blank_is_read_with_its_number(write, content, expected):
    assert expected == list(read_objects(write(content)))


@pytest.mark.parametrize(
    "line, expected",
    [
        pytest.param(b"hello", "not valid JSON.*one JSON object on each line", id="no-json"),
        pytest.param(b'{"a":1', "not valid JSON", id="torn"),
        pytest.param(b'{"a":1}{"a":2}', "not valid JSON", id="two-objects"),
        pytest.param(b'{"a":NaN}', "not valid JSON.*write null", id="nan"),
        pytest.param(b'{"a":-Infinity}', "not valid JSON.*write null", id="infinity"),
        pytest.param(b'{"a":1e999}', "not valid JSON", id="beyond-doubles"),
        pytest.param(rb'{"a":"\ud83d"}', "not valid JSON.*lone surrogate", id="lone-high-surrogate"),
        pytest.param(rb'{"a":"\uDE00"}', "not valid JSON.*lone surrogate", id="lone-low-surrogate"),
        pytest.param(b'{"a":"\xed\xa0\xbd"}', "not valid UTF-8", id="surrogate-in-bytes"),
        pytest.param(b'{"a":"\xff"}', "not valid UTF-8", id="latin"),
        pytest.param(b"[" * 100_000, "not valid JSON", id="nested-too-deep"),
        pytest.param(b"[1]", "not a JSON object", id="list"),
        pytest.param(b"null", "not a JSON object", id="null"),
    ],
)
def test_a_line_that_is_no_object_is_named(write, line, expected):
    lines = read_objects(write(b'{"a":0}\n' + line + b"\n"))

    assert (1, {"a": 0}) == next(lines)
    with pytest.raises(DataError, match=f"lines.jsonl, line 2: .*{expected}"):
        next(lines)


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: it cannot be read"):
        list(read_objects(tmp_path / "none.jsonl"))


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(DataError, match="it cannot be read"):
        list(read_objects(tmp_path))


def test_a_line_without_an_end_is_refused_before_it_is_in_memory(tmp_path):
    with (tmp_path / "x.jsonl").open("wb") as file:
        file.write(b'{"a":1}\n')
        file.truncate(1 << 40)

    lines = read_objects(tmp_path / "x.jsonl")

    assert (1, {"a": 1}) == next(lines)
    with pytest.raises(DataError, match=r"line 2: it has more than 268,435,456 bytes"):
        next(lines)

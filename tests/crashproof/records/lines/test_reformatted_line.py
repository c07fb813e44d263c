from __future__ import annotations

import gzip

import pytest

from crashproof.records.lines.checksummed_line import MAX_NESTING, add_checksum
from crashproof.records.lines.reformatted_line import is_blank, restore, what_it_looks_like

LINE = add_checksum(b'{"v":1,"text":"a, b:  \\" {c}"}')


@pytest.mark.parametrize(
    "content",
    [
        LINE,
        LINE[:-1],
        LINE[:-1] + b"\r\n",
        b"\xef\xbb\xbf" + LINE,
        b"\t " + LINE,
        LINE.replace(b',"', b' , "').replace(b'":', b'" : '),
        LINE.replace(b"{", b"{\n  ", 1).replace(b"}\n", b"\n}\n"),
    ],
    ids=["as written", "no newline", "carriage return", "byte order mark", "indented", "spaced", "on several lines"],
)
def test_white_space_around_tokens_is_no_part_of_a_record(content: bytes) -> None:
    assert LINE == restore(content)


@pytest.mark.parametrize(
    "content",
    [
        LINE.replace(b"a, b", b"a,b"),
        LINE.replace(b"1", b"2", 1),
        LINE[:-9] + b"\n",
        LINE[:-1] + LINE,
        b"",
        add_checksum(b'{"a":' + b"[" * MAX_NESTING + b"]" * MAX_NESTING + b"}"),
    ],
    ids=["inside a text", "another value", "no checksum", "two records", "nothing", "nested too deeply"],
)
def test_everything_else_is_damage(content: bytes) -> None:
    assert restore(content) is None


@pytest.mark.parametrize("content", [b"", b"\n", b"\xef\xbb\xbf \t\r\n"], ids=["nothing", "newline", "all kinds"])
def test_white_space_is_blank(content: bytes) -> None:
    assert is_blank(content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\0" * 9, "holds only zeros, as some file systems leave them after a power loss"),
        (LINE.decode().encode("utf-16"), "is UTF-16 text"),
        (LINE.decode().encode("utf-16-le"), "is UTF-16 text"),
        (gzip.compress(LINE), "is compressed (gzip)"),
        (b"\x28\xb5\x2f\xfd\x00", "is compressed (zstd)"),
        (b"<<<<<<< HEAD\n", "is a marker of a merge conflict"),
        (b"=======\n", "is a marker of a merge conflict"),
        (b"hello\n", None),
        (b"", None),
    ],
    ids=["zeros", "utf-16", "utf-16 without mark", "gzip", "zstd", "conflict begins", "conflict", "text", "nothing"],
)
def test_damage_is_named_where_it_is_known(content: bytes, said: str | None) -> None:
    assert said == what_it_looks_like(content)

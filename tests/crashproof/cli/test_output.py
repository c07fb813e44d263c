from __future__ import annotations

import io
import json
import sys

import pytest

from crashproof.cli.output import clean, print_json, print_json_line, say
from crashproof.cli.tables import aligned, compact, cut, short_duration


@pytest.mark.parametrize(
    "text, expected",
    [
        pytest.param("plain ü 模型", "plain ü 模型", id="kept"),
        pytest.param("\x1b[2J", "\\x1b[2J", id="escape"),
        pytest.param("\x9b31m", "\\x9b31m", id="eight-bit-escape"),
        pytest.param("a\nb\r\tc", "a\\nb\\r\\tc", id="lines"),
        pytest.param("a\u202eb\u2066", "a\\u202eb\\u2066", id="direction"),
        pytest.param("\udcff", "\\udcff", id="half-character"),
        pytest.param("\x7f\x00", "\\x7f\\x00", id="delete"),
    ],
)
def test_what_a_terminal_would_obey_is_spelled_out(text, expected):
    assert expected == clean(text)


@pytest.mark.parametrize("printing", [print_json, print_json_line])
def test_json_is_strict_and_safe_and_says_the_same(capsys, printing):
    printing({"a": float("nan"), "b": ["\x9b\x1b\x7f\u202e", "ü"], "c": {"d": float("-inf")}})
    output = capsys.readouterr().out

    assert {"a": None, "b": ["\x9b\x1b\x7f\u202e", "ü"], "c": {"d": None}} | {
        "nonfinite": {"a": "NaN", "c.d": "-Infinity"}
    } == json.loads(output, parse_constant=pytest.fail)
    assert not {"\x9b", "\x1b", "\x7f", "\u202e"} & set(output)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_output_of_another_encoding_gets_what_it_can_hold(monkeypatch, encoding):
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding=encoding))

    say("1 → 2 … 模")
    print_json({"a": "模"})
    print_json_line({"a": "模"})
    sys.stdout.flush()

    lines = content.getvalue().decode(encoding).splitlines()
    assert "1 -> 2 ... \\u6a21" == lines[0]
    assert [{"a": "模"}] * 2 == [json.loads("".join(lines[1:4])), json.loads(lines[4])]


def test_columns_are_aligned_and_the_first_gives_way():
    rows = [["name", "n"], ["a/very/long/path/of/a/run", "1,000"]]

    assert ["name                           n", "a/very/long/path/of/a/run  1,000"] == aligned(
        rows, right=frozenset({1})
    )
    assert all(len(line) <= 21 for line in aligned(rows, width=21))
    assert aligned(rows, width=21)[1].startswith("…")


@pytest.mark.parametrize("text, width, expected", [("abc", 3, "abc"), ("abcd", 3, "…cd"), ("模型模型", 5, "…模型")])
def test_a_long_name_keeps_its_end(text, width, expected):
    assert expected == cut(text, width)


@pytest.mark.parametrize(
    "count, expected",
    [(0, "0"), (99_999, "99,999"), (100_000, "100k"), (1_250_000, "1.25M"), (10**9, "1G"), (10**13, "10T")],
)
def test_large_counts_are_short(count, expected):
    assert expected == compact(count)


@pytest.mark.parametrize(
    "seconds, expected",
    [(None, "-"), (-5.0, "0s"), (35.4, "35s"), (720.0, "12m"), (7800.0, "2h10m"), (266400.0, "3d2h"), (1e8, "1157d")],
)
def test_durations_are_short(seconds, expected):
    assert expected == short_duration(seconds)

"""Reading of JSON lines."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from crashproof.errors import DataError

__all__ = ["MAX_LINE_BYTES", "decode_object", "lines_of", "read_objects", "repeated_key"]

MAX_LINE_BYTES = 256 << 20

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_LIKELY_CAUSES = (
    (re.compile(rb"\b(?:NaN|Infinity)\b"), "JSON has no NaN and no Infinity; write null."),
    (re.compile(rb"\\u[dD][89a-fA-F]"), "It seems to contain a lone surrogate, half of a character."),
    (re.compile(rb""), "Put one JSON object on each line."),
)
"""Hints for a line that is not JSON: the first pattern found in it decides."""
_CUT_OFF = "The file ends inside this line: it was cut off; restore it, or remove the line."
_KEY = re.compile(rb'(?<!\\)"\s*:')


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number and object of each line that is not blank; one line is in memory at a time.

    Raises:
        DataError: The file cannot be read, or a line is not UTF-8, JSON or an object.
    """
    try:
        with path.open("rb") as file:
            for number, _, line in lines_of(file, path):
                yield number, decode_object(line, path, number)
    except OSError as error:
        raise DataError(path, f"it cannot be read ({error.strerror})", hint="Check the path.") from error


def lines_of(file: BinaryIO, path: Path, *, keeps_blank: bool = False) -> Iterator[tuple[int, int, bytes]]:
    """The number, first byte and content of each line, unless told otherwise of each that is not blank.

    No line is read whole before its length is known: a file may be one line of a terabyte.

    Raises:
        DataError: A line is too long.
    """
    at = 0
    for number, line in enumerate(iter(partial(file.readline, MAX_LINE_BYTES + 1), b""), 1):
        if len(line) > MAX_LINE_BYTES:
            reason = f"it has more than {MAX_LINE_BYTES:,} bytes"
            raise DataError(path, reason, line=number, hint="Put one JSON object on each line.")
        content = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
        if keeps_blank or content.strip():
            yield number, at + len(line) - len(content), content
        at += len(line)


def decode_object(content: bytes, path: Path, number: int, *, at: int = 0, unit: str = "line") -> dict[str, Any]:
    """The object that a line contains; `at` is its first byte in the file.

    Raises:
        DataError: It is not UTF-8, JSON or an object.
    """
    try:
        value: object = msgspec.json.decode(content)
    except UnicodeDecodeError as error:
        raise _no_utf8(error, content, path, number, at=at, unit=unit) from error
    except (msgspec.MsgspecError, RecursionError) as error:
        if content.startswith(_UTF_16_MARKS):
            raise DataError(path, "it is UTF-16", line=number, unit=unit, hint="Save it as UTF-8.") from error
        hint = next(hint for pattern, hint in _LIKELY_CAUSES if pattern.search(content))
        if "truncated" in str(error) and not content.rstrip(b" \t").endswith((b"\n", b"}")):
            hint = _CUT_OFF
        raise DataError(path, f"it is not valid JSON ({error})", line=number, unit=unit, hint=hint) from error
    if not isinstance(value, dict):
        hint = "Put one JSON object on each line."
        if number == 1 and content.lstrip().startswith(b"["):
            hint += " An array of objects belongs in a file named .json."
        raise DataError(path, "it is not a JSON object", line=number, unit=unit, hint=hint)
    return value


def repeated_key(content: bytes, value: dict[str, Any]) -> str | None:
    """A key that an object in this JSON has twice, of which a decoder keeps one; None if there is none."""
    # Only a suspicious line is decoded a second time: counting is far cheaper.
    if len(_KEY.findall(content)) == _num_keys(value):
        return None
    found: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found.extend(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        return dict(pairs)

    # This decoder does not go as deep as the other.
    with suppress(RecursionError):
        json.loads(content, object_pairs_hook=note)
    return found[0] if found else None


def _no_utf8(error: UnicodeDecodeError, content: bytes, path: Path, number: int, *, at: int, unit: str) -> DataError:
    if content.startswith(_UTF_16_MARKS):
        return DataError(path, "it is UTF-16, and not valid UTF-8", line=number, unit=unit, hint="Save it as UTF-8.")
    place = _first_bad_byte(content)
    reason = f"it is not valid UTF-8 ({error.reason} at byte {place:,}, byte {at + place:,} of the file)"
    return DataError(path, reason, line=number, unit=unit, hint="Save the file as UTF-8.")


def _first_bad_byte(content: bytes) -> int:
    """Where decoding stops; a decoder of JSON may count from the start of a string instead."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return error.start
    return 0


def _num_keys(value: object) -> int:
    """Keys of all objects in a value, however deep they lie."""
    num, pending = 0, [value]
    while pending:
        each = pending.pop()
        if isinstance(each, dict):
            num += len(each)
            pending += each.values()
        elif isinstance(each, list):
            pending += each
    return num

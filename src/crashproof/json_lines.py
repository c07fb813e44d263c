"""Reading of JSON lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from crashproof.errors import DataError

__all__ = ["MAX_LINE_BYTES", "read_objects"]

MAX_LINE_BYTES = 256 << 20

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LIKELY_CAUSES = (
    (re.compile(rb"\b(?:NaN|Infinity)\b"), "JSON has no NaN and no Infinity; write null."),
    (re.compile(rb"\\u[dD][89a-fA-F]"), "It seems to contain a lone surrogate, half of a character."),
    (re.compile(rb""), "Put one JSON object on each line."),
)
"""Hints for a line that is not JSON: the first pattern found in it decides."""


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number and object of each line that is not blank; one line is in memory at a time.

    Raises:
        DataError: The file cannot be read, or a line is not UTF-8, JSON or an object.
    """
    try:
        with path.open("rb") as file:
            # No line is read whole before its length is known: a file may be one line of a terabyte.
            for number, line in enumerate(iter(partial(file.readline, MAX_LINE_BYTES + 1), b""), 1):
                if len(line) > MAX_LINE_BYTES:
                    raise DataError(
                        path,
                        f"it has more than {MAX_LINE_BYTES:,} bytes",
                        line=number,
                        hint="Put one JSON object on each line.",
                    )
                content = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
                if content.strip():
                    yield number, _object(path, number, content)
    except OSError as error:
        raise DataError(path, f"it cannot be read ({error.strerror})", hint="Check the path.") from error


def _object(path: Path, number: int, content: bytes) -> dict[str, Any]:
    try:
        value: object = msgspec.json.decode(content)
    except UnicodeDecodeError as error:
        raise DataError(path, f"it is not valid UTF-8 ({error.reason} at byte {error.start})", line=number) from error
    except (msgspec.MsgspecError, RecursionError) as error:
        hint = next(hint for pattern, hint in _LIKELY_CAUSES if pattern.search(content))
        raise DataError(path, f"it is not valid JSON ({error})", line=number, hint=hint) from error
    if not isinstance(value, dict):
        raise DataError(path, "it is not a JSON object", line=number, hint="Put one JSON object on each line.")
    return value

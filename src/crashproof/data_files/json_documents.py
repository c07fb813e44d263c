"""JSON files of one document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from crashproof.data_files.json_lines_file import read_lines
from crashproof.data_files.record import Place, Record
from crashproof.errors import DataError
from crashproof.json_lines import decode_object

__all__ = ["read_json"]

MAX_DOCUMENT_BYTES = 2 << 30
"""One document is in memory as a whole."""
_LIST_NAMES = ("data", "train", "rows", "records", "examples", "instances", "samples", "items")
_BETWEEN = b" \t\r\n,:"
_HINT = 'A .json file is an array of objects, {"data": […]}, an object of columns, or one object on each line.'


def read_json(file: BinaryIO, path: Path) -> Iterator[Record]:
    """The records of a `.json` file: an array, an array under a name, columns, or lines after all.

    Raises:
        DataError: It is none of these, or too large to be one document.
    """
    head = file.readline(MAX_DOCUMENT_BYTES).removeprefix(b"\xef\xbb\xbf")
    if _is_object(head):
        while (line := file.readline(MAX_DOCUMENT_BYTES)) and not line.strip():
            head += line
        if line:
            yield from read_lines(_Rejoined(head + line, file), path)
            return
    content = head + file.read(MAX_DOCUMENT_BYTES + 1)
    if len(content) > MAX_DOCUMENT_BYTES:
        raise DataError(
            path, f"it is one document of more than {MAX_DOCUMENT_BYTES:,} bytes", hint="Convert it to JSON lines."
        )
    if content.strip():
        yield from _records(content, path)


class _Rejoined:
    """A file of which the first bytes have been read already."""

    def __init__(self, head: bytes, file: BinaryIO) -> None:
        self._head = head
        self._file = file

    def readline(self, size: int = -1) -> bytes:
        if not self._head:
            return self._file.readline(size)
        end = self._head.find(b"\n") + 1 or len(self._head)
        line, self._head = self._head[:end], self._head[end:]
        return line


def _is_object(content: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(content), dict)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


def _records(content: bytes, path: Path) -> Iterator[Record]:
    try:
        document = msgspec.json.decode(content, type=list[msgspec.Raw] | dict[str, msgspec.Raw])
    except UnicodeDecodeError:
        decode_object(content, path, 1)
        raise
    except (msgspec.MsgspecError, RecursionError) as error:
        raise DataError(path, f"it is not valid JSON ({error})", hint=_HINT) from error
    if isinstance(document, list):
        yield from _elements(document, content, 0, path)
        return
    named = [name for name in _LIST_NAMES if name in document and _is_list_of_objects(document[name])]
    if len(named) == 1:
        elements = msgspec.json.decode(document[named[0]], type=list[msgspec.Raw])
        yield from _elements(elements, content, content.find(bytes(document[named[0]])), path)
        return
    value = msgspec.json.decode(content)
    columns = _columns(value)
    if columns is None:
        yield Record(place=Place(path=path, number=1, unit="record"), content=value)
        return
    for number, row in enumerate(columns, 1):
        yield Record(place=Place(path=path, number=number, unit="record"), content=row)


def _elements(elements: list[msgspec.Raw], content: bytes, at: int, path: Path) -> Iterator[Record]:
    """Each element with the line of the file on which it begins."""
    at, line, counted = content.index(b"[", at) + 1, 1, 0
    for element in elements:
        raw = bytes(element)
        while content[at] in _BETWEEN:
            at += 1
        line += content.count(b"\n", counted, at)
        counted = at
        value = decode_object(raw, path, line, at=at)
        yield Record(place=Place(path=path, number=line), content=_unwrapped(value))
        at += len(raw)


def _unwrapped(value: dict[str, Any]) -> dict[str, Any]:
    """The row in an element of a dataset server's answer."""
    row = value.get("row")
    return row if isinstance(row, dict) and "row_idx" in value else value


def _is_list_of_objects(raw: msgspec.Raw) -> bool:
    try:
        elements = msgspec.json.decode(raw, type=list[dict[str, msgspec.Raw]])
    except msgspec.MsgspecError:
        return False
    return bool(elements)


def _columns(value: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The rows of an object of columns, each a list or, as pandas writes them, an object by index."""
    columns = list(value.values())
    if columns and all(isinstance(column, dict) for column in columns):
        index = list(columns[0])
        if not index or any(list(column) != index for column in columns) or not all(map(str.isdigit, index)):
            return None
        columns = [list(column.values()) for column in columns]
    is_table = bool(columns) and all(isinstance(column, list) for column in columns)
    if not is_table or len({len(column) for column in columns}) != 1 or any(map(_has_turns, columns)):
        return None
    return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]


def _has_turns(column: list[Any]) -> bool:
    """Whether a list is one conversation and not a column."""
    return bool(column) and all(isinstance(each, dict) and ("role" in each or "from" in each) for each in column)

"""Files of JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crashproof.data_files.record import Place, Record
from crashproof.json_lines import decode_object, lines_of, repeated_key

__all__ = ["read_lines"]


def read_lines(file: Any, path: Path) -> Iterator[Record]:
    """The record of each line that is not blank.

    Raises:
        DataError: A line is not UTF-8, JSON or an object, is too long, or has one key twice.
    """
    for number, at, line in lines_of(file, path):
        place = Place(path=path, number=number)
        content = decode_object(line, path, number, at=at)
        twice = repeated_key(line, content)
        if twice is not None:
            raise place.error(f'an object in it has the key "{twice}" twice', hint="Only one of them can be read.")
        yield Record(place=place, content=content)

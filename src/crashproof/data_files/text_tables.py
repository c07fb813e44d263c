"""Tables of comma or tab separated text."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from crashproof.data_files.record import Place, Record
from crashproof.errors import DataError
from crashproof.json_lines import MAX_LINE_BYTES, lines_of

__all__ = ["read_table"]


def read_table(file: BinaryIO, path: Path, *, delimiter: str) -> Iterator[Record]:
    """The rows under a header, all cells as text; an empty cell is no field.

    Raises:
        DataError: A row has more or fewer cells than the header, or is not UTF-8; names its last line.
    """
    # The limit is the process's own, and no cell is longer than its line.
    csv.field_size_limit(max(MAX_LINE_BYTES, csv.field_size_limit()))
    lines = _Lines(file, path)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next(rows, [])
        _require_header(header, path)
        for row in rows:
            place = Place(path=path, number=lines.number)
            if len(row) != len(header):
                reason = f"its row has {len(row)} cells, and the header {len(header)}"
                raise place.error(reason, hint="Quote cells that contain a separator or a line break.")
            yield Record(place=place, content={name: cell for name, cell in zip(header, row, strict=True) if cell})
    except csv.Error as error:
        raise DataError(path, f"it is not a table ({error})", line=lines.number, hint="Quote its cells.") from error


class _Lines:
    """Lines as text, and the number of the one that was read last."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.number = 0
        self._path = path
        self._lines = lines_of(file, path, keeps_blank=True)

    def __iter__(self) -> Iterator[str]:
        for number, at, line in self._lines:
            self.number = number
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                reason = f"it is not valid UTF-8 ({error.reason} at byte {at + error.start:,} of the file)"
                hint = "Save the file as UTF-8."
                raise DataError(self._path, reason, line=self.number, hint=hint) from error


def _require_header(header: list[str], path: Path) -> None:
    repeated = [name for name in header if header.count(name) > 1]
    if repeated:
        raise DataError(path, f'two columns are named "{repeated[0]}"', line=1, hint="Rename one of them.")

"""Parquet and Arrow files."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crashproof.data_files.record import Place, Record
from crashproof.errors import DataError
from crashproof.optional_dependencies import require_modules

__all__ = ["read_arrow", "read_parquet"]

_ROWS_AT_A_TIME = 1024
_FILE_MAGIC = b"ARROW1"


def read_parquet(path: Path) -> Iterator[Record]:
    """The rows of a Parquet file, some at a time.

    Raises:
        DataError: The file is damaged.
        MissingExtra: pyarrow is not installed.
    """
    require_modules("parquet", "pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            yield from _rows(file.iter_batches(batch_size=_ROWS_AT_A_TIME), path)
    except _errors() as error:
        raise _damaged(path, "Parquet", error) from error


def read_arrow(path: Path) -> Iterator[Record]:
    """The rows of an Arrow file, in its format of streams (as `datasets` saves it) or of files (Feather).

    Raises:
        DataError: The file is damaged.
        MissingExtra: pyarrow is not installed.
    """
    require_modules("parquet", "pyarrow")
    pyarrow: Any = importlib.import_module("pyarrow")
    try:
        with pyarrow.memory_map(str(path)) as source:
            if source.read(len(_FILE_MAGIC)) == _FILE_MAGIC:
                reader = pyarrow.ipc.open_file(source)
                batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
            else:
                source.seek(0)
                batches = iter(pyarrow.ipc.open_stream(source))
            yield from _rows(batches, path)
    except _errors() as error:
        raise _damaged(path, "Arrow", error) from error


def _errors() -> tuple[type[Exception], ...]:
    pyarrow: Any = importlib.import_module("pyarrow")
    # Invalid data is an ArrowInvalid, a torn file often an OSError.
    return (pyarrow.ArrowException, OSError)


def _damaged(path: Path, what: str, error: Exception) -> DataError:
    return DataError(path, f"it cannot be read as {what} ({str(error).rstrip('.')})", hint="Copy it once more.")


def _rows(batches: Iterator[Any], path: Path) -> Iterator[Record]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS_AT_A_TIME):
            for row in batch.slice(start, _ROWS_AT_A_TIME).to_pylist():
                number += 1
                yield Record(place=Place(path=path, number=number, unit="row"), content=_without_gaps(row))


def _without_gaps(value: Any) -> Any:
    """A value without the fields that are null: one schema for all rows fills in what a row does not have."""
    if isinstance(value, dict):
        return {name: _without_gaps(each) for name, each in value.items() if each is not None}
    return [_without_gaps(each) for each in value] if isinstance(value, list) else value

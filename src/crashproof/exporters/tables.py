"""Write a run's canonical history as one table: CSV or Parquet.

Each is written whole under a temporary name and then renamed: whoever reads it finds the old table or the new.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from crashproof.disk.atomic import write_atomically
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.optional_dependencies import missing_extra, require_versions
from crashproof.reading.curves import CurveFollower
from crashproof.reading.run_reader import RunReader
from crashproof.records.metrics import MetricsSnapshot

__all__ = ["COLUMNS", "column_names", "write_csv", "write_parquet"]

COLUMNS = (
    *("step", "attempt", "timestamp", "wall_clock_hours", "loss", "learning_rate", "samples_processed"),
    *("tokens_processed", "throughput_samples_per_sec", "throughput_tokens_per_sec"),
)
"""Of every table; the components of the loss follow, as `loss_components.kd`."""

_WHOLE_NUMBERS = frozenset({"step", "attempt", "samples_processed", "tokens_processed"})
_COMPONENT = "loss_components."
_ROWS_AT_ONCE = 65_536


def write_csv(run_dir: str | Path, path: str | Path, *, disk: Disk = REAL_DISK) -> int:
    """Write the history as CSV with a header; returns the number of rows.

    A value that is not finite is `NaN`, `inf` or `-inf`, as pandas and NumPy spell them; one that there is not is
    empty. Floats have all their digits.

    Raises:
        NotARun: there is none.
        DiskFull, StorageUnwritable: the old file stays.
    """
    reader = RunReader.open(Path(run_dir))
    names = column_names(reader)
    num_rows = 0

    def fill(file: BinaryIO) -> None:
        nonlocal num_rows
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(names)
        for update in reader.history():
            rows.writerow([_spelled(value) for value in _values(update, names)])
            num_rows += 1
            if text.tell() > 1 << 20:
                file.write(text.getvalue().encode())
                text.seek(0)
                text.truncate()
        file.write(text.getvalue().encode())

    disk.make_folders(Path(path).absolute().parent)
    write_atomically(Path(path), fill, disk=disk)
    return num_rows


def write_parquet(run_dir: str | Path, path: str | Path, *, disk: Disk = REAL_DISK) -> int:
    """Write the history as Parquet; returns the number of rows. NaN stays NaN, a missing value is null.

    Raises:
        MissingExtra: pyarrow is not installed.
        NotARun: there is none.
        DiskFull, StorageUnwritable: the old file stays.
    """
    require_versions("parquet", {"pyarrow": "18.0"})
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise missing_extra("parquet") from None
    reader = RunReader.open(Path(run_dir))
    names = column_names(reader)
    kinds = [pyarrow.int64() if name in _WHOLE_NUMBERS else pyarrow.float64() for name in names]
    schema = pyarrow.schema(list(zip(names, kinds, strict=True)))
    num_rows = 0

    def fill(file: BinaryIO) -> None:
        nonlocal num_rows
        with parquet.ParquetWriter(_Sink(file), schema) as writer:
            history = reader.history()
            while portion := list(islice(history, _ROWS_AT_ONCE)):
                rows = zip(*(_values(update, names) for update in portion), strict=True)
                arrays = [pyarrow.array(column, kind) for column, kind in zip(rows, kinds, strict=True)]
                writer.write_table(pyarrow.table(arrays, schema=schema))
                num_rows += len(portion)

    disk.make_folders(Path(path).absolute().parent)
    write_atomically(Path(path), fill, disk=disk)
    return num_rows


def column_names(reader: RunReader) -> list[str]:
    """`COLUMNS`, and every component that any update has."""
    follower = CurveFollower(reader.folder)
    follower.refresh()
    series = dict.fromkeys(name for point in follower.points() for name in point.series)
    return [*COLUMNS, *(name for name in series if name.startswith(_COMPONENT))]


class _Sink(io.RawIOBase):
    """A file as pyarrow wants it: one that knows where it is."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._place = 0

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self._file.write(bytes(content))
        self._place += len(content)
        return len(content)

    def tell(self) -> int:
        return self._place


def _values(update: MetricsSnapshot, names: list[str]) -> Iterator[Any]:
    components = update.loss_components
    return (
        components.get(name.removeprefix(_COMPONENT)) if name.startswith(_COMPONENT) else getattr(update, name)
        for name in names
    )


def _spelled(value: float | None) -> Any:
    return "NaN" if isinstance(value, float) and math.isnan(value) else value

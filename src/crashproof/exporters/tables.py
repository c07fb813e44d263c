"""Write a run's history as CSV or Parquet.

A table is written atomically: its readers find the old one or the new one.
"""

from __future__ import annotations

import csv
import io
import math
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from crashproof.disk.atomic import write_atomically
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.optional_dependencies import missing_extra, require_versions
from crashproof.reading.curves import CurveFollower
from crashproof.reading.run_reader import RunReader
from crashproof.records.metrics import COLUMNS, COMPONENT, INTEGERS
from crashproof.rules.naming.evaluations import evaluation_names
from crashproof.rules.naming.trackers import TABLE
from crashproof.views.dataframes import rows_of

__all__ = ["column_names", "write_csv", "write_parquet"]

_ROWS_AT_ONCE = 65_536


def write_csv(run_dir: str | Path, path: str | Path, *, disk: Disk = REAL_DISK) -> int:
    """Write the history and the evaluations as CSV with a header; returns the number of rows: one for each step.

    A non-finite value is `NaN`, `inf` or `-inf`, as pandas and NumPy spell them; a missing one is empty. Floats
    have all their digits.

    Raises:
        NotARun: the folder holds no run.
        DiskFull, StorageUnwritable: the old table stays.
    """
    reader = RunReader.open(Path(run_dir))
    names = column_names(reader)
    num_rows = 0

    def fill(file: BinaryIO) -> None:
        nonlocal num_rows
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(names)
        for cells in rows_of(reader):
            rows.writerow([_spelled(cells.get(name)) for name in names])
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
    """Write the history and the evaluations as Parquet; returns the number of rows: one for each step.

    NaN stays NaN, a missing value is null.

    Raises:
        MissingExtra: pyarrow is not installed.
        NotARun: the folder holds no run.
        DiskFull, StorageUnwritable: the old table stays.
    """
    require_versions("parquet", {"pyarrow": "18.0"})
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise missing_extra("parquet") from None
    reader = RunReader.open(Path(run_dir))
    names = column_names(reader)
    kinds = [pyarrow.int64() if name in INTEGERS else pyarrow.float64() for name in names]
    schema = pyarrow.schema(list(zip(names, kinds, strict=True)))
    num_rows = 0

    def fill(file: BinaryIO) -> None:
        nonlocal num_rows
        with parquet.ParquetWriter(_PyarrowFile(file), schema) as writer:
            rows = rows_of(reader)
            while portion := list(islice(rows, _ROWS_AT_ONCE)):
                columns = ([cells.get(name) for cells in portion] for name in names)
                arrays = [pyarrow.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
                writer.write_table(pyarrow.table(arrays, schema=schema))
                num_rows += len(portion)

    disk.make_folders(Path(path).absolute().parent)
    write_atomically(Path(path), fill, disk=disk)
    return num_rows


def column_names(reader: RunReader) -> list[str]:
    """The columns of a run's table: the fields of an update, its components, and what was evaluated.

    A component is `loss_components.kd`, a result on held-out data `eval_loss`.
    """
    follower = CurveFollower(reader.folder)
    follower.refresh()
    series = dict.fromkeys(name for point in follower.points() for name in point.series)
    results = (name for each in reader.evaluations() for name in each.results)
    evaluated = evaluation_names(results, separator=TABLE.separator)
    return [*COLUMNS, *(name for name in series if name.startswith(COMPONENT)), *sorted(evaluated.values())]


class _PyarrowFile(io.RawIOBase):
    """A file that reports its position, as pyarrow requires."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._position = 0

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self._file.write(bytes(content))
        self._position += len(content)
        return len(content)

    def tell(self) -> int:
        return self._position


def _spelled(value: float | None) -> float | str | None:
    return "NaN" if isinstance(value, float) and math.isnan(value) else value

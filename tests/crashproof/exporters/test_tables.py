from __future__ import annotations

import csv
import errno
import math

import pytest

from crashproof import RunReader
from crashproof.errors import DiskFull
from crashproof.exporters.tables import write_csv, write_parquet
from crashproof.records.metrics import COLUMNS
from crashproof.testing import FaultyDisk


def rows_of(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_has_each_step_once_with_all_digits(train, tmp_path):
    run = train((1, 50), (31, 80))

    num_rows = write_csv(run, tmp_path / "deep" / "run.csv")

    rows = rows_of(tmp_path / "deep" / "run.csv")
    history = list(RunReader.open(run).history())
    assert 80 == num_rows == len(rows)
    assert [(str(line.step), repr(line.loss)) for line in history if line.step != 13] == [
        (row["step"], row["loss"]) for row in rows if row["step"] != "13"
    ]
    assert "NaN" == rows[12]["loss"]
    assert [*COLUMNS, "loss_components.kd", "loss_components.ce"] == list(rows[0])


def test_a_component_that_comes_later_has_its_column(open_tracker, update, run_dir, tmp_path):
    tracker = open_tracker()
    update(tracker, 1, loss_components={"kd": 1.0})
    update(tracker, 2, loss_components={"new": math.inf})

    write_csv(run_dir, tmp_path / "run.csv")

    rows = rows_of(tmp_path / "run.csv")
    assert [("1.0", ""), ("", "inf")] == [(row["loss_components.kd"], row["loss_components.new"]) for row in rows]


def test_pandas_reads_the_table(train, tmp_path):
    pandas = pytest.importorskip("pandas")
    run = train((1, 20))
    write_csv(run, tmp_path / "run.csv")

    frame = pandas.read_csv(tmp_path / "run.csv")

    assert list(range(1, 21)) == list(frame["step"])
    assert math.isnan(frame["loss"][12])


def test_parquet_keeps_types_and_nan(train, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    run = train((1, 50), (31, 80))

    write_parquet(run, tmp_path / "run.parquet")

    table = parquet.read_table(tmp_path / "run.parquet")
    assert ("int64", "double") == (str(table.schema.field("step").type), str(table.schema.field("loss").type))
    assert list(range(1, 81)) == table["step"].to_pylist()
    assert math.isnan(table["loss"].to_pylist()[12])
    assert 0 == table["loss"].null_count


def test_a_second_time_the_table_is_replaced_whole(train, tmp_path):
    run = train((1, 10))
    write_csv(run, tmp_path / "run.csv")
    train((6, 30))

    assert 30 == write_csv(run, tmp_path / "run.csv")
    assert 30 == len(rows_of(tmp_path / "run.csv"))
    assert [tmp_path / "run.csv"] == list(tmp_path.glob("run.csv*"))


def test_where_the_disk_is_full_the_old_table_stays(train, tmp_path):
    run = train((1, 10))
    path = tmp_path / "tables" / "run.csv"
    write_csv(run, path)
    before = path.read_bytes()
    (tmp_path / "scratch").mkdir()
    disk = FaultyDisk(tmp_path / "tables", tmp_path / "scratch", fails_at=2, error=errno.ENOSPC, lasts=True)
    train((11, 30))

    with pytest.raises(DiskFull):
        write_csv(run, path, disk=disk)

    assert before == path.read_bytes()

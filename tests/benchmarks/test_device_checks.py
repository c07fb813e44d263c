"""A device check that fails or hangs is a row that says why, and takes no other with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.device.report import Report
from benchmarks.device.rows import Row, Verdict, found_or_failed
from benchmarks.device.running import CheckRunner
from benchmarks.device.sizes import CHECKS, SIZES

ROOT = Path(__file__).parents[2]
ROW = {"what": "a sum", "figure": "4", "verdict": "holds", "why": "", "values": {}}


def run(program: str, tmp_path: Path, *, limit_seconds: float = 60.0) -> list[Row]:
    result = tmp_path / "rows"
    command = [sys.executable, "-c", program, str(result)]
    return CheckRunner("cpu").run(command, result, tmp_path / "log", limit_seconds=limit_seconds)


def test_a_check_that_hangs_keeps_its_rows_and_ends_with_all_that_it_started(tmp_path: Path) -> None:
    program = f"""
import subprocess, sys, time
child = subprocess.Popen(["sleep", "1000"])
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
open(sys.argv[1], "w").write({json.dumps(ROW)!r} + "\\n" + '{{"what": "half a ro')
print("still waiting for the device", flush=True)
time.sleep(1000)
"""

    rows = run(program, tmp_path, limit_seconds=2.0)

    assert ["a sum", "the check itself"] == [row.what for row in rows]
    assert (Verdict.FAILS, "not done within 2 s, and ended; still waiting for the device") == (
        rows[1].verdict,
        rows[1].why,
    )
    pid = int((tmp_path / "pid").read_text())
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


@pytest.mark.parametrize(
    "program, why",
    [
        ("raise ValueError('no such kernel')", "exit code 1: ValueError: no such kernel"),
        ("import os; os.kill(os.getpid(), 9)", "exit code -9: it printed nothing"),
        ("", "it ended without a result"),
    ],
    ids=["raises", "is killed", "finds nothing"],
)
def test_a_check_that_ends_badly_is_a_row_that_says_why(program: str, why: str, tmp_path: Path) -> None:
    rows = run(program, tmp_path)

    assert [(Verdict.FAILS, why)] == [(row.verdict, row.why) for row in rows]


def test_a_part_of_a_check_that_raises_is_a_row_that_says_why() -> None:
    def find() -> Row:
        raise MemoryError("the device has 3 MiB left\nand more")

    row = found_or_failed("a sum", find)

    assert ("a sum", Verdict.FAILS, "MemoryError: the device has 3 MiB left") == (row.what, row.verdict, row.why)


def test_a_report_has_failed_where_one_row_has() -> None:
    good = Row(what="a", figure="1", verdict=Verdict.HOLDS)
    bad = Row(what="b", figure="2", verdict=Verdict.FAILS, why="one | two")

    def report(*rows: Row) -> Report:
        return Report(device="cpu", facts={"device": "none"}, date="today", seconds=1.0, rows={"sums": rows})

    assert not report(good).has_failed
    assert report(good, bad).has_failed
    assert "| sums | b | 2 | FAILS | one \\| two |" in report(good, bad).markdown()
    assert json.loads(report(good, bad).json())["failed"]


def test_without_a_device_it_says_how_to_run_small(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is one")
    command = [sys.executable, "-m", "benchmarks.device", "--out", str(tmp_path)]

    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert 2 == ended.returncode
    assert "DEVICE=cpu make gpu" in ended.stderr
    assert not (tmp_path / "results.json").exists()


def test_the_limits_of_all_checks_on_a_device_are_known() -> None:
    assert all(set(CHECKS) == set(size.limits) for size in SIZES.values())
    assert 480 == SIZES["cuda"].limit_seconds

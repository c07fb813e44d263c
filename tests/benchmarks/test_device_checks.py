"""Every device check runs on a CPU, small, and none of them can take the others with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.device.report import Report
from benchmarks.device.rows import Row, Verdict
from benchmarks.device.running import CheckRunner
from benchmarks.device.sizes import CHECKS, SIZES

ROOT = Path(__file__).parents[2]
ROW = {"what": "a sum", "figure": "4", "verdict": "holds", "why": "", "values": {}}
CANNOT_BE_ON_A_CPU = {
    "a cuda device is timed without being waited for",
    "a step on a gpu makes no synchronisation",
    "a trainer's step, bfloat16",
    "a trainer's step, float16",
    "`dcp.async_save`, pinned, its stager kept",
    "`update_metrics` with device tensors",
}


def run(program: str, tmp_path: Path, *, limit_seconds: float = 60.0) -> list[Row]:
    result = tmp_path / "rows"
    command = [sys.executable, "-c", program, str(result)]
    return CheckRunner("cpu").run(command, result, tmp_path / "log", limit_seconds=limit_seconds)


@pytest.mark.timeout(500)
def test_every_check_runs_on_a_cpu_and_says_what_it_cannot_show_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.device", "--device", "cpu", "--out", str(tmp_path)]

    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert 0 == ended.returncode, ended.stdout + ended.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert list(CHECKS) == list(found["checks"])
    rows = [row for each in found["checks"].values() for row in each]
    not_here = {row["what"] for row in rows if row["verdict"] == Verdict.NOT_HERE}
    assert CANNOT_BE_ON_A_CPU == {name for name in not_here if "Liger" not in name}
    assert all(row["why"] for row in rows if row["verdict"] == Verdict.NOT_HERE)
    same = [row["figure"] for row in rows if row["what"].endswith("after SIGKILL")]
    assert ["the same bits after 60 steps"] * 4 == same
    assert (
        not (ROOT / "benchmarks" / "RESULTS_GPU.md").exists()
        or "CUDA" in (ROOT / "benchmarks" / "RESULTS_GPU.md").read_text()
    )


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

"""Every device check runs on a CPU, small: its runs are killed and resumed there too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.device.rows import Verdict
from benchmarks.device.sizes import CHECKS

ROOT = Path(__file__).parents[2]
CANNOT_BE_ON_A_CPU = {
    "a cuda device is timed without being waited for",
    "a step on a gpu makes no synchronisation",
    "a trainer's step, bfloat16",
    "a trainer's step, float16",
    "`dcp.async_save`, pinned, its stager kept",
    "`update_metrics` with device tensors",
}


@pytest.mark.timeout(1300)
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
    resumed = [row for row in rows if row["what"].endswith("after SIGKILL")]
    assert [(Verdict.HOLDS, "the same bits after 60 steps")] * 4 == [
        (row["verdict"], row["figure"]) for row in resumed
    ]
    assert all(row["why"].startswith("Resuming at step") for row in resumed)

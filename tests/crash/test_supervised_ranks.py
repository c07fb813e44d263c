"""`crashproof run` above torchrun: one rank is killed, all are started again, and nothing differs in the end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from supervising import supervise

pytest.importorskip("torch")

PROGRAM = Path(__file__).parents[1] / "supervised_ranks_program.py"
TORCHRUN = [sys.executable, "-m", "crashproof.pytorch.torchrun", "--standalone", "--nproc-per-node", "2"]


def test_two_ranks_of_which_one_is_killed(tmp_path):
    weights = []
    for name, more, causes in (("plain", "never", ["completed"]), ("killed", "once", ["signal", "completed"])):
        folder = tmp_path / name
        command = [*TORCHRUN, str(PROGRAM), str(folder), more]
        run = supervise(folder, "", "--patience", "60", "--grace", "5", command=command, OMP_NUM_THREADS="1")

        assert (0, causes) == (run.code, run.causes), run.said
        assert [] == run.left_processes()
        weights.append(run.weights())

    assert weights[0] == weights[1]

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from crashproof import RunReader
from crashproof.cli.app import app

PROGRAM = Path(__file__).parents[2] / "page_program.py"


def export(*arguments: object):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


@pytest.fixture
def run(open_tracker, update, run_dir):
    tracker = open_tracker()
    for step in range(1, 31):
        update(tracker, step)
    tracker.close()
    return run_dir


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_is_written(run, tmp_path, kind):
    pytest.importorskip("pyarrow")

    answer = export(run, "--to", kind, "--into", tmp_path / "out")

    assert (0, f"{tmp_path / 'out'}: 30 rows, up to step 30.\n") == (answer.exit_code, answer.output)


def test_a_tracker_is_filled_and_a_second_time_nothing_is_added(run, tmp_path):
    pytest.importorskip("tensorboard")

    first = export(run, "--to", "tensorboard", "--into", tmp_path / "logs")
    second = export(run, "--to", "tensorboard", "--into", tmp_path / "logs", "--json")

    assert f"{tmp_path / 'logs'}: 30 updates added, up to step 30." in first.output
    assert (0, 30) == tuple(json.loads(second.output)[name] for name in ("num_added", "last_step"))


def test_a_live_run_is_followed_through_its_death_and_its_restart(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, logs = tmp_path / "run", tmp_path / "logs"
    steps = []
    for killed_at in (70, 0):
        training = subprocess.Popen([sys.executable, str(PROGRAM), str(run), "120", "0.02", str(killed_at)])
        while not (run / "progress" / "metrics.jsonl").exists():
            time.sleep(0.02)
        command = ["export", str(run), "--to", "tensorboard", "--into", str(logs), "--follow", "--seconds", "0.3"]
        following = subprocess.run(
            [sys.executable, "-c", "from crashproof.cli import main; main()", *command],
            capture_output=True,
            text=True,
            timeout=100,
        )
        training.wait()
        assert (0, "") == (following.returncode, following.stderr)
        reader = EventAccumulator(str(logs), size_guidance={"scalars": 0})
        reader.Reload()
        steps.append([each.step for each in reader.Scalars("loss")])

    # What the restart computed again, those behind checkpoint 40, had been held back.
    assert [list(range(1, 41)), list(range(1, 121))] == steps
    assert [line.step for line in RunReader.open(run).history()] == steps[-1]


def test_what_is_no_run_and_no_tool_is_said(tmp_path):
    assert "holds no run" in str(export(tmp_path, "--to", "csv", "--into", tmp_path / "x").exception)
    assert 2 == export(tmp_path, "--to", "excel", "--into", tmp_path / "x").exit_code


def test_a_folder_of_another_run_is_said(run, tmp_path, open_tracker, update):
    pytest.importorskip("tensorboard")
    export(run, "--to", "tensorboard", "--into", tmp_path / "logs")
    update(open_tracker(output_dir=tmp_path / "other"), 1)

    answer = export(tmp_path / "other", "--to", "tensorboard", "--into", tmp_path / "logs")

    assert "already holds another run" in str(answer.exception)

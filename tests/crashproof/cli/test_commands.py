from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from crashproof import SYSTEM_CLOCK, TrackerSettings
from crashproof.cli.app import app
from crashproof.disk.files import Disk
from crashproof.errors import NotARun, RunInUse
from crashproof.rules.retention import KeepLatest

runner = CliRunner()


@pytest.fixture
def run(open_tracker: Callable[..., Any], update: Callable[..., None], run_dir: Path) -> Path:
    """Four steps, checkpoints at 2 and 4, closed."""
    tracker = open_tracker()
    for step in (1, 2, 3, 4):
        update(tracker, step)
        if step % 2 == 0:
            path = run_dir / f"checkpoint_{step}.pt"
            path.write_bytes(b"weights" * step)
            # Long enough ago for its time to tell of later writes.
            os.utime(path, (1_000_000_000.5, 1_000_000_000.5))
            tracker.record_checkpoint(step, path, step * 2)
    tracker.close()
    return run_dir


def crashproof(*arguments: str, exit_code: int = 0) -> str:
    result = runner.invoke(app, list(arguments), catch_exceptions=False)
    assert exit_code == result.exit_code, result.output
    return result.output


def test_status_reports_progress_and_where_a_restart_resumes(run: Path) -> None:
    output = crashproof("status", str(run), exit_code=6)

    assert "step 4 of 100" in output
    assert "would resume at step 4 from checkpoint_4.pt (verified earlier, unchanged since)" in output


def test_status_reads_the_checkpoint_if_asked_to(run: Path) -> None:
    assert "from checkpoint_4.pt (read and intact)" in crashproof("status", str(run), "--verify", exit_code=6)


def test_status_reads_what_was_written_to_since(run: Path) -> None:
    (run / "checkpoint_4.pt").write_bytes((run / "checkpoint_4.pt").read_bytes())

    assert "from checkpoint_4.pt (read and intact)" in crashproof("status", str(run), exit_code=6)


def test_status_in_json_has_the_fields_of_the_summary(run: Path) -> None:
    answer = json.loads(crashproof("status", str(run), "--json", exit_code=6))

    resume = {"step": 4, "checkpoint": "checkpoint_4.pt", "passed_over": [], "verification": "on_record"}
    assert resume == answer["resume"]
    assert 4 == answer["steps_completed"]


def test_status_names_what_a_restart_skips(run: Path) -> None:
    (run / "checkpoint_4.pt").write_bytes(b"weights" * 3)

    output = crashproof("status", str(run), exit_code=6)

    assert "would resume at step 2" in output
    assert "skips checkpoint_4.pt: it has 21 bytes instead of 28" in output


def test_status_says_when_no_checkpoint_can_be_used(run: Path) -> None:
    for path in run.glob("checkpoint_*"):
        path.unlink()

    assert "would end with an error" in crashproof("status", str(run), exit_code=6)


def test_status_of_a_run_without_checkpoints(open_tracker: Callable[..., Any], run_dir: Path) -> None:
    open_tracker().close()

    assert "would begin at step 0" in crashproof("status", str(run_dir), exit_code=6)


def test_status_of_a_live_run_names_its_process(open_tracker: Callable[..., Any], run_dir: Path) -> None:
    open_tracker(clock=SYSTEM_CLOCK)

    assert f"starting as process {os.getpid()} on " in crashproof("status", str(run_dir))


def test_status_shows_the_newest_evaluation(
    open_tracker: Callable[..., Any], update: Callable[..., None], run_dir: Path
) -> None:
    tracker = open_tracker()
    update(tracker, 1200)
    tracker.record_evaluation(1200, {"perplexity": 12.3456789, "json_valid_rate": float("nan")})
    tracker.close()

    assert "evaluation  step 1,200: perplexity 12.35, json_valid_rate nan" in crashproof("status", str(run_dir))
    answer = json.loads(crashproof("status", str(run_dir), "--json"))
    assert {"perplexity": 12.3456789, "json_valid_rate": None} == answer["evaluation"]
    assert "NaN" == answer["nonfinite"]["evaluation.json_valid_rate"]


def test_verify_finds_an_intact_run_intact(run: Path) -> None:
    assert "2 checkpoints and all journals" in crashproof("verify", str(run))
    assert json.loads(crashproof("verify", str(run), "--json"))["is_whole"]


def test_verify_names_damage_and_repair_quarantines_it(run: Path) -> None:
    (run / "checkpoint_4.pt").write_bytes(b"Weights" + b"weights" * 3)
    with (run / "progress" / "metrics.jsonl").open("ab") as file:
        file.write(b"torn")

    found = crashproof("verify", str(run), exit_code=1)
    repaired = crashproof("repair", str(run))

    assert "checkpoint_4.pt (28 bytes): its bytes differ" in found
    assert "metrics.jsonl, byte" in found
    assert "2 damaged item(s)" in repaired
    assert b"torn\n" == (run / "progress" / "set_aside" / "metrics.jsonl").read_bytes()
    assert "is intact" in crashproof("verify", str(run))
    assert "no damage found" in crashproof("repair", str(run))


def test_verify_names_what_the_next_start_deletes(
    open_tracker: Callable[..., Any], save_checkpoint: Callable[..., Path], run_dir: Path
) -> None:
    class RefusesToDelete(Disk):
        def remove_file(self, path: Path) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    tracker = open_tracker(settings=TrackerSettings(has_heartbeat=False, keep=KeepLatest(1)), disk=RefusesToDelete())
    for step in (1, 2):
        save_checkpoint(tracker, step)
    tracker.close()

    assert "checkpoint_1.pt: removed by the retention rule; the next start deletes" in crashproof(
        "verify", str(run_dir)
    )
    answer = json.loads(crashproof("verify", str(run_dir), "--json"))
    assert (True, ["checkpoint_1.pt"]) == (answer["is_whole"], answer["left_of_removals"])


def test_repair_rebuilds_snapshots_and_prints_json(run: Path) -> None:
    for name in ("session.json", "progress.json", "checkpoints.json"):
        (run / "progress" / name).write_text("garbled")

    assert [] == json.loads(crashproof("repair", str(run), "--json"))["set_aside"]
    assert 4 == json.loads((run / "progress" / "progress.json").read_text())["steps_completed"]
    assert ["2", "4"] == list(json.loads((run / "progress" / "checkpoints.json").read_text())["checkpoints"])


def test_repair_leaves_a_live_run_alone(open_tracker: Callable[..., Any], run_dir: Path) -> None:
    open_tracker()

    with pytest.raises(RunInUse):
        crashproof("repair", str(run_dir))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotARun):
        crashproof("status", str(tmp_path))


def test_an_error_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from crashproof.cli import main; main()", "status", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert 2 == done.returncode
    assert 1 == done.stderr.count("\n")
    assert done.stderr.startswith(f"crashproof: {tmp_path} holds no run")

"""A training whose standard streams are closed: nothing that is printed lands in a file of the run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from crashproof import RunReader

PROGRAM = """
import json, os, sys
from pathlib import Path
from crashproof import AlertSettings, TrackerSettings, training_progress_context
from crashproof.disk.atomic import write_atomically

run, seen = Path(sys.argv[1]), []

def print_strays(number):
    # As a C library or a child process prints: Python's own `print` knows that there is no standard output.
    for stream in (1, 2):
        try:
            os.write(stream, b"stray line %d\\n" % number)
        except OSError:
            pass
    os.system("echo stray child")
    for stream in (0, 1, 2):
        try:
            seen.append(os.readlink(f"/proc/self/fd/{stream}"))
        except OSError:
            pass

def write(file):
    file.write(b"weights ")
    print_strays(0)
    file.write(b"of the model")

settings = TrackerSettings(
    sync_interval_seconds=0.02, summary_interval_seconds=0.02, alerts=AlertSettings(command=["true"])
)
with training_progress_context({"lr": 1}, run, 3, settings=settings) as progress:
    for step in (1, 2, 3):
        progress.update_metrics(step, 1.0, {}, 0.1, step, step)
        print_strays(step)
        progress.record_api_response(f"key {step}", {"text": "answer"})
        written = write_atomically(run / f"checkpoint_{step}.pt", write)
        progress.record_checkpoint(step, written.path, step, written=written)
Path(sys.argv[2]).write_text(json.dumps(seen))
"""


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "<&-", ">&-", "2>&-"])
def test_what_is_printed_into_a_closed_stream_lands_in_no_file_of_the_run(tmp_path: Path, closed: str) -> None:
    run, seen = tmp_path / "run", tmp_path / "seen.json"
    (tmp_path / "train.py").write_text(PROGRAM)
    subprocess.run(
        ["sh", "-c", f'exec "$0" -W ignore "$@" {closed}', sys.executable, tmp_path / "train.py", run, seen],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=60,
        check=True,
    )

    reader = RunReader.open(run)
    assert [1, 2, 3] == [line.step for line in reader.history()]
    assert [] == reader.problems()
    assert {b"weights of the model"} == {path.read_bytes() for path in run.glob("checkpoint_*.pt")}
    assert set() == {place for place in json.loads(seen.read_text()) if place != "/dev/null"}
    stray = [path for path in run.rglob("*") if path.is_file() and b"stray" in path.read_bytes()]
    assert [] == stray

"""A real file-size limit stops the journal from growing, and is lifted again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from crashproof import RunReader

PROGRAM = """
import json, resource, signal, sys, logging
from pathlib import Path
from crashproof import ProgressTracker, TrackerSettings
from crashproof.errors import DiskFull
logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
tracker = ProgressTracker(folder, {"lr": 1}, 100, settings=TrackerSettings(has_heartbeat=False))
def update(step):
    tracker.update_metrics(step, 1.0 / step, {"kd": 0.5}, 0.1, step, step)
for step in range(1, 11):
    update(step)
size = tracker.metrics_file.stat().st_size
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
for step in range(11, 31):
    update(step)
waiting = tracker.get_progress_summary()["lines_waiting"]
try:
    tracker.save()
    refused = ""
except DiskFull as error:
    refused = str(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
for step in range(31, 41):
    update(step)
tracker.close()
print(json.dumps({"waiting": waiting, "refused": refused}))
"""


def test_training_continues_with_a_full_disk_and_nothing_is_lost(tmp_path: Path) -> None:
    folder = tmp_path / "progress"

    done = subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], capture_output=True, text=True, check=True)

    report = json.loads(done.stdout)
    assert 20 == report["waiting"]
    assert "RLIMIT_FSIZE" in report["refused"]
    assert 1 == done.stderr.count("queued in memory until there is space")
    reader = RunReader.open(tmp_path)
    assert list(range(1, 41)) == [line.step for line in reader.history()]
    assert [] == reader.problems()

"""A cloud announces the end of the machine: a save is begun if it fits, and nothing outlives the deadline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from metadata_server import metadata_server
from supervising import start

from crashproof import RunReader

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are seen in /proc")

OPTIONS = ("--patience", "60", "--max-restarts", "0", "--notices-every", "0.2")


@pytest.mark.parametrize(
    "seconds_left, save_seconds, is_saved",
    [
        pytest.param(5, 1, True, id="5-s-for-a-save-of-1"),
        pytest.param(5, 4, False, id="5-s-for-a-save-of-4"),
        pytest.param(30, 4, True, id="30-s-for-a-save-of-4"),
        pytest.param(120, 4, True, id="120-s-for-a-save-of-4"),
    ],
)
def test_a_save_is_begun_only_if_it_fits(seconds_left, save_seconds, is_saved, tmp_path):
    folder = tmp_path / "run"
    with metadata_server() as metadata:
        options = (*OPTIONS, "--notices", f"aws={metadata.url}")
        run = start(folder, "saves_when_asked", *options, BUSY_SECONDS=str(save_seconds))
        run.wait_until((folder / "slow").exists)
        # Whole seconds, as the real address has them.
        metadata.announce(seconds_left + 0.9)
        run.wait()

    saved = json.loads((folder / "checkpoint_7.json").read_text())
    assert (75, ["preemption"]) == (run.code, run.causes), run.said
    assert float(is_saved) == saved["weights"][1]
    assert ("so none is begun" in run.said) is not is_saved
    supervision = RunReader.open(folder).session().supervision
    assert (1, int(is_saved)) == (supervision.notices, supervision.notices_saved)
    assert [] == run.left_processes()


def test_what_does_not_end_in_time_is_killed(tmp_path):
    folder = tmp_path / "run"
    with metadata_server() as metadata:
        run = start(folder, "hangs_in_handler", *OPTIONS, "--notices", f"aws={metadata.url}")
        run.wait_until(lambda: (folder / "checkpoint_6.json").exists())
        metadata.announce(7)
        run.wait()

    assert (75, ["preemption"]) == (run.code, run.causes)
    assert "SIGKILL for all of its processes" in run.said
    assert [] == run.left_processes()

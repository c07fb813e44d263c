from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from supervising import processes_with

PROGRAM = """
import os, signal, subprocess, sys, time
from crashproof.supervisor.child import Child, adopt_orphans

adopt_orphans()
child = Child.start(["sh", "-c", sys.argv[1]], os.environ)
deadline = time.monotonic() + 30
while (ended := child.poll()) is None and time.monotonic() < deadline:
    child.note_family()
    if os.path.exists("kill"):
        child.kill_all()
    time.sleep(0.05)
left = child.end_orphans()
print(ended.exit_code, ended.signal, bool(left), flush=True)
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are seen in /proc")


@pytest.mark.parametrize(
    "command, expected",
    [
        pytest.param("exit 7", "7 None False", id="an-exit-code"),
        pytest.param("kill -9 $$", "None 9 False", id="a-signal"),
        pytest.param("sleep 300 & exit 0", "0 None True", id="one-left-in-its-group"),
        pytest.param("setsid sleep 300 & exit 0", "0 None True", id="one-left-in-another-session"),
        pytest.param(
            "setsid sh -c 'trap : TERM; sleep 300; sleep 300' & exit 0", "0 None True", id="ignoring-SIGTERM"
        ),
        pytest.param("touch kill; setsid sleep 300 & sleep 300", "None 9 False", id="all-are-killed"),
    ],
)
def test_how_a_command_ended_and_that_nothing_is_left_of_it(command, expected, tmp_path):
    mark = uuid.uuid4().hex
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, command],
        cwd=tmp_path,
        env={**os.environ, "MARK": mark},
        capture_output=True,
        text=True,
        check=True,
    )

    assert expected == found.stdout.strip()
    assert [] == list(processes_with(mark))

"""torchrun with exit codes: what its processes ended with, told as one number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from crashproof.pytorch.torchrun import exit_code_of, main

ALONE = ["--standalone", "--nproc-per-node", "1", "--no-python"]


@pytest.mark.parametrize(
    "codes, expected",
    [
        ([75], 75),
        ([1], 1),
        ([-9], 137),
        ([-15], 143),
        # A lost rank is a consequence.
        ([75, 1, 75], 1),
        ([75, -9], 137),
        ([-9, 1], 137),
        # An error that a restart does not mend is the cause, whoever ended first.
        ([75, 2], 2),
        ([-15, 75, 2, 1], 2),
    ],
)
def test_many_exit_codes_become_the_one_that_says_what_to_do(codes: list[int], expected: int) -> None:
    assert expected == exit_code_of(codes)


@pytest.mark.parametrize(
    "script, expected, said",
    [
        ("exit 0", 0, ""),
        ("exit 75", 75, "ended with exit code 75."),
        ("exit 2", 2, "ended with exit code 2."),
        # torchrun makes one dollar of two.
        ("kill -KILL $$$$", 137, "was killed by SIGKILL."),
    ],
)
def test_the_exit_code_is_that_of_the_process(
    script: str, expected: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert expected == main([*ALONE, "sh", "-c", script])

    assert said in capfd.readouterr().err


def test_a_host_that_is_alone_may_try_again(capfd: pytest.CaptureFixture[str]) -> None:
    nobody = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:1", "--rdzv-id", "1"]

    assert 75 == main([*nobody, "--rdzv-conf", "is_host=0,read_timeout=1", "--no-python", "true"])

    assert "Could not meet the other hosts" in capfd.readouterr().err


def test_asked_to_stop_it_says_start_again(tmp_path: Path) -> None:
    mark = tmp_path / "started"
    program = [
        sys.executable,
        "-m",
        "crashproof.pytorch.torchrun",
        *ALONE,
        "sh",
        "-c",
        # Torch forgets a process that it is about to start when the signal comes.
        f"sleep 1; touch {mark}; exec sleep 60",
    ]
    started = subprocess.Popen(program, stderr=subprocess.PIPE, text=True)

    while not mark.exists():
        assert started.poll() is None
    os.kill(started.pid, signal.SIGTERM)
    _, said = started.communicate(timeout=60)

    assert 75 == started.returncode, said
    assert "Stopped by SIGTERM." in said

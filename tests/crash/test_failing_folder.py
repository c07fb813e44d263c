"""An output folder that cannot be written: by one host at the start, or by nobody for a while."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from crash.test_two_hosts import ENVIRONMENT, SETTINGS, ended, free_port, host_command, write_data
from mounts import can_mount, with_mounts

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not can_mount(), reason="no mount namespaces for this user (unshare --mount)"),
]

STEPS = 200
FULL_LATER = ("train.strategy=ddp", f"train.steps={STEPS}", "progress.checkpoint_interval=20")
SHARE_IT = "Let all hosts share the file system of --output-dir."


def start_second_apart(data: Path, output_dir: Path, mounts: str) -> list[Any]:
    """Two hosts, of which the second sees other mounts."""
    port = free_port()
    commands = [host_command(number, port, data, output_dir) for number in range(2)]
    commands[1] = with_mounts(mounts, commands[1])
    return [
        subprocess.Popen(
            command,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for command in commands
    ]


@pytest.mark.parametrize(
    "mounts, words",
    [
        pytest.param(
            "mount --bind {run} {run}; mount -o remount,bind,ro {run}",
            ["cannot be written: Read-only file system", "Every rank writes its part of each checkpoint."],
            id="read-only",
        ),
        pytest.param(
            "mount -t tmpfs -o size=64k none {run}; head -c 1M /dev/zero > {run}/other || true",
            ["The disk is full", "Free space there"],
            id="full",
        ),
        pytest.param("mount --bind {other} {run}", ["does not see what rank 0 has written", SHARE_IT], id="another"),
    ],
)
def test_a_host_that_cannot_save_is_named_on_both_before_anything_is_trained(
    tmp_path: Path, mounts: str, words: list[str]
) -> None:
    data, run, other = write_data(tmp_path / "data.jsonl"), tmp_path / "run", tmp_path / "other"
    run.mkdir()
    other.mkdir()

    hosts = ended(start_second_apart(data, run, mounts.format(run=run, other=other)))

    assert [False, False] == [code == 0 for code, _ in hosts]
    for _, said in hosts:
        assert "Not every rank can save checkpoints in" in said
        assert "Rank 1 on" in said
        assert [] == [each for each in words if each not in said]
    assert [[], []] == [list(run.iterdir()), list(other.iterdir())]


DRIVER = """
import json, os, subprocess, sys, time
from pathlib import Path
from crashproof import RunReader
run, is_freed, command = Path(sys.argv[1]), sys.argv[2] == "freed", sys.argv[3:]
trainer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
filler = run / "of somebody else"
while not (run / "checkpoint_20.pt").exists() and trainer.poll() is None:
    time.sleep(0.005)
with filler.open("wb") as file:
    try:
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    except OSError:
        pass
said = []
for line in trainer.stderr:
    said.append(line)
    if "Training waits" in line and is_freed:
        filler.unlink()
code = trainer.wait()
filler.unlink(missing_ok=True)
reader = RunReader.open(run)
session = reader.session()
print(json.dumps({
    "code": code,
    "said": "".join(said),
    "steps": [line.step for line in reader.history()],
    "checkpoints": sorted(session.checkpoints),
    "failed": session.failed_saves.total,
    "alerts": [each.kind for each in session.alerts],
    "problems": reader.problems(),
    "hidden": [each.name for each in run.glob(".*")],
}))
"""


def on_a_disk_that_fills(tmp_path: Path, what: str, *settings: str) -> Any:
    """A trainer whose disk is full soon after step 20."""
    data, run = write_data(tmp_path / "data.jsonl"), tmp_path / "run"
    run.mkdir()
    trainer = [sys.executable, "-m", "training.distill_kd", f"data.path={data}", "--output-dir", str(run)]
    driver = [sys.executable, "-c", DRIVER, str(run), what, *trainer, *SETTINGS, *FULL_LATER, *settings]
    done = subprocess.run(
        with_mounts(f"mount -t tmpfs -o size=24m none {run}", driver),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
    )
    return json.loads(done.stdout)


def test_a_disk_that_fills_and_is_freed_costs_nothing(tmp_path: Path) -> None:
    found = on_a_disk_that_fills(
        tmp_path, "freed", "progress.max_failed_saves=null", "progress.last_save_seconds=120"
    )

    assert 0 == found["code"], found["said"]
    assert list(range(1, STEPS + 1)) == found["steps"]
    assert STEPS in found["checkpoints"]
    assert found["failed"] >= 1
    assert {"saves_failing"} == set(found["alerts"]) - {"disk_low", "complete"}
    assert "Complete: 200 steps." in found["said"]
    assert ([], []) == (found["problems"], found["hidden"])


def test_a_disk_that_stays_full_ends_the_run_and_names_what_is_left(tmp_path: Path) -> None:
    began = time.monotonic()

    found = on_a_disk_that_fills(tmp_path, "stays", "progress.max_failed_saves=null", "progress.last_save_seconds=4")

    assert 2 == found["code"], found["said"]
    last = found["said"].splitlines()[-1]
    newest = max(found["checkpoints"])
    assert last.startswith(f"kd: Step {STEPS} could not be saved after ")
    assert f"The newest checkpoint is that of step {newest}, so {STEPS - newest} steps are lost." in last
    assert f"Then start the same command again: it resumes at step {newest}." in last
    assert re.search(r"Alert saves_failing: \d+ saves in a row have failed, the newest at step ", found["said"])
    assert "Alert raised: SavesFailed: Step 200 could not be saved" in found["said"]
    assert ([], []) == (found["problems"], found["hidden"])
    assert time.monotonic() - began < 250


def test_a_folder_that_is_read_only_is_found_at_the_start(tmp_path: Path) -> None:
    data, run = write_data(tmp_path / "data.jsonl"), tmp_path / "run"
    run.mkdir()
    trainer = [sys.executable, "-m", "training.distill_kd", f"data.path={data}", "--output-dir", str(run), *SETTINGS]
    mounts = f"mount --bind {run} {run}; mount -o remount,bind,ro {run}"

    done = subprocess.run(
        with_mounts(mounts, trainer), env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False
    )

    assert 2 == done.returncode
    assert f"kd: {run} cannot be written: Read-only file system." in done.stderr
    assert [] == list(run.iterdir())

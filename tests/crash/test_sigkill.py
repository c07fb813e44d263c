"""A writer is killed at random moments; what it acknowledged over a pipe is on the disk."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crashproof import ProgressTracker, RunReader

WRITER = """
import sys, os
from pathlib import Path
from crashproof import ProgressTracker, write_atomically
out = Path(sys.argv[1])
tracker = ProgressTracker(out / "progress", {"lr": 1}, 10**9)
newest = tracker.get_recovery_checkpoint()
step = newest.checkpoint_step if newest else 0
print("ready", step, flush=True)
while True:
    step += 1
    tracker.update_metrics(step, 1.0 / step, {"kd": 1.0}, 0.1, step, step)
    os.write(1, b"step %d\\n" % step)
    if step % 20 == 0:
        path = out / f"checkpoint_{step}.pt"
        tracker.record_checkpoint(step, path, step, written=write_atomically(path, lambda f: f.write(b"x" * step)))
        os.write(1, b"checkpoint %d\\n" % step)
        tracker.record_api_response(f"prompt-{step}", {"text": str(step)}, 0.01)
        os.write(1, b"answer %d\\n" % step)
"""


def run_until_killed(output_dir: Path, seconds: float) -> list[tuple[str, int]]:
    """What the writer has acknowledged until it was killed, some time after it was ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(output_dir)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first.startswith(b"ready")
    reader = os.dup(process.stdout.fileno())
    os.set_blocking(reader, False)
    deadline = time.monotonic() + seconds
    output = b""
    while time.monotonic() < deadline:
        try:
            output += os.read(reader, 1 << 16)
        except BlockingIOError:
            time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    os.set_blocking(reader, True)
    while piece := os.read(reader, 1 << 16):
        output += piece
    os.close(reader)
    process.stdout.close()
    complete_lines = output.decode().splitlines() if output.endswith(b"\n") else output.decode().splitlines()[:-1]
    return [(kind, int(number)) for kind, number in (line.split() for line in complete_lines)]


def lost_after_kills(output_dir: Path, chance: random.Random, kills: int) -> tuple[list[str], int]:
    lost: list[str] = []
    acknowledged = 0
    answers: set[int] = set()
    for _ in range(kills):
        lines = run_until_killed(output_dir, chance.uniform(0.01, 0.4))
        acknowledged += len(lines)
        answers |= {number for kind, number in lines if kind == "answer"}
        reader = RunReader.open(output_dir)
        steps = [line.step for line in reader.history()]
        newest = max((number for kind, number in lines if kind == "step"), default=0)
        if steps != list(range(1, len(steps) + 1)) or len(steps) < newest:
            lost.append(f"step {newest} was acknowledged, the history has {len(steps)}")
        recorded = set(reader.session().checkpoints)
        lost += [f"checkpoint {n}" for kind, n in lines if kind == "checkpoint" and n not in recorded]
    tracker = ProgressTracker(output_dir / "progress", {"lr": 1}, 10**9)
    lost += [f"answer {n}" for n in answers if tracker.get_api_response(f"prompt-{n}") != {"text": str(n)}]
    assert tracker.session.replay_differed_at is None
    assert {"crashed"} == {attempt.how for attempt in tracker.session.attempts[:-1]}
    tracker.close()
    return lost, acknowledged


def test_nothing_acknowledged_is_lost_when_the_writer_is_killed(tmp_path: Path) -> None:
    seed = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    print(f"seed {seed}")

    lost, acknowledged = lost_after_kills(tmp_path, random.Random(seed), kills=6)

    print(f"{acknowledged:,} acknowledged, {len(lost)} lost")
    assert [] == lost
    assert [] == RunReader.open(tmp_path).problems()


@pytest.mark.long
def test_nothing_acknowledged_is_lost_in_many_kills(tmp_path: Path) -> None:
    seed = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    rounds = int(os.environ.get("ROUNDS", "10"))
    print(f"seed {seed}")
    chance = random.Random(seed)

    for number in range(rounds):
        lost, acknowledged = lost_after_kills(tmp_path / str(number), chance, kills=20)
        print(f"round {number}: {acknowledged:,} acknowledged, {len(lost)} lost")
        assert [] == lost

"""A training without a framework, which can go wrong in every way that a supervisor must tell apart.

`python supervised_program.py DIR MODE [STEPS]`: the weights are a function of all steps, and each step of the ones
before it, so a resume that is not exact shows in the last checkpoint. What goes wrong goes wrong at step 7, and but
for the modes that say `always`, in the first life alone.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from crashproof import TrackerSettings, write_atomically
from crashproof.tracking.context import TrainingProgressContext, get_recovery_checkpoint

BAD_STEP = 7
SAVE_EVERY = 3
SECONDS = float(os.environ.get("STEP_SECONDS", "0.02"))
BUSY_SECONDS = float(os.environ.get("BUSY_SECONDS", "4"))


def main(folder: Path, mode: str, steps: int) -> int:
    """Train; return the exit code."""
    is_first = not (folder / "lived").exists()
    goes_wrong = is_first or mode.startswith("always")
    config = {"train": {"lr": 0.1}}
    found = get_recovery_checkpoint(folder, config)
    if mode == "always_raises_at_start":
        raise RuntimeError("the data cannot be read")
    settings = TrackerSettings(sync_interval_seconds=0.2, summary_interval_seconds=0.2)
    with TrainingProgressContext(config, folder, steps, settings=settings) as progress:
        (folder / "lived").touch()
        state = {"step": 0, "weights": [0.5, -0.25]}
        if found is not None:
            assert progress.tracker is not None
            progress.tracker.get_recovery_checkpoint()
            state = json.loads(found[0].read_text())
            if state["step"] in DEADLY.get(mode, ()):
                raise RuntimeError("the state cannot be loaded")
        for step in range(state["step"] + 1, steps + 1):
            time.sleep(SECONDS)
            state = next_state(state, step)
            loss = sum(each * each for each in state["weights"])
            progress.update_metrics(step, loss, {}, 0.1, step, step)
            if step == BAD_STEP and goes_wrong and mode in WRONG:
                code = WRONG[mode](folder, progress)
                if code is not None:
                    return code
            if step % SAVE_EVERY == 0 or step == steps:
                save(folder, progress, state)
    return 0


def next_state(state: dict, step: int) -> dict:
    """The state after one more step."""
    draw = random.Random(step).random()
    return {"step": step, "weights": [0.9 * each + 0.01 * draw / (1 + abs(each)) for each in state["weights"]]}


def save(folder: Path, progress: TrainingProgressContext, state: dict) -> None:
    """Write a checkpoint and record it."""
    path = folder / f"checkpoint_{state['step']}.json"
    written = write_atomically(path, lambda file: file.write(json.dumps(state).encode()))
    progress.record_checkpoint(state["step"], path, state["step"], written=written)


def hang_in_python(folder: Path, progress: TrainingProgressContext) -> None:
    """Wait for a lock that nobody releases, with a child that would hold a device."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    while True:
        time.sleep(1)


def hang_in_c(folder: Path, progress: TrainingProgressContext) -> None:
    """Keep the interpreter's lock in C code: no Python thread runs any more."""
    pow(3, 1 << 31)


def hang_in_handler(folder: Path, progress: TrainingProgressContext) -> None:
    """Hang, and again in the handler of SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: time.sleep(600))
    time.sleep(600)


def stop_itself(folder: Path, progress: TrainingProgressContext) -> None:
    """Be stopped; somebody else continues it."""
    (folder / "stopped").write_text(str(os.getpid()))
    os.kill(os.getpid(), signal.SIGSTOP)


def run_out_of_memory(folder: Path, progress: TrainingProgressContext) -> None:
    """Be killed by the kernel, in a control group with little memory."""
    group = os.environ["OOM_GROUP"]
    Path(group, "cgroup.procs").write_text(str(os.getpid()))
    taken = []
    with progress.phase("evaluating"):
        # The supervisor has to see the group once before.
        time.sleep(3)
        while True:
            taken.append(bytearray(os.urandom(1 << 20)) * 16)


def raise_error(folder: Path, progress: TrainingProgressContext) -> None:
    """Raise."""
    raise RuntimeError(f"CUDA error at {hex(id(folder))}: an illegal memory access")


def busy(phase: str) -> Callable[[Path, TrainingProgressContext], None]:
    """Work for long without a step, having said so."""

    def work(folder: Path, progress: TrainingProgressContext) -> None:
        with progress.phase(phase):
            time.sleep(BUSY_SECONDS)

    return work


def damage_newest(folder: Path, progress: TrainingProgressContext) -> None:
    """Alter the newest checkpoint, and die."""
    newest = max(folder.glob("checkpoint_*.json"), key=lambda each: int(each.stem.split("_")[1]))
    newest.write_bytes(newest.read_bytes()[:-5])
    os.kill(os.getpid(), signal.SIGKILL)


def slow_saves(folder: Path, progress: TrainingProgressContext) -> int:
    """Save for as long as told, go on, and at a request to stop save for as long again, and exit with 75."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    for is_last in (False, True):
        with progress.phase("saving"):
            time.sleep(BUSY_SECONDS)
            save(folder, progress, {"step": BAD_STEP, "weights": [BUSY_SECONDS, float(is_last)]})
        if not is_last:
            (folder / "slow").write_text(str(os.getpid()))
            with progress.phase("evaluating"):
                while not asked:
                    time.sleep(0.05)
    progress.end_as("preempted")
    return 75


def slow(folder: Path, progress: TrainingProgressContext) -> None:
    """Go on after a while, in which something may happen to the supervisor."""
    (folder / "slow").write_text(str(os.getpid()))
    deadline = time.monotonic() + 20
    while not (folder / "go_on").exists() and time.monotonic() < deadline:
        time.sleep(0.05)


WRONG: dict[str, Callable[[Path, TrainingProgressContext], int | None]] = {
    "always_raises": raise_error,
    "raises": raise_error,
    "exits_early": lambda *_: 0,
    "exits_2": lambda *_: 2,
    "asks_again": lambda *_: 75,
    "is_killed": lambda *_: os.kill(os.getpid(), signal.SIGKILL),
    "is_out_of_memory": run_out_of_memory,
    "hangs_in_python": hang_in_python,
    "hangs_in_c": hang_in_c,
    "hangs_in_handler": hang_in_handler,
    "is_stopped": stop_itself,
    "saves_slowly": busy("saving"),
    "evaluates_slowly": busy("evaluating"),
    "damages_newest": damage_newest,
    "waits": slow,
    "saves_when_asked": slow_saves,
}

DEADLY = {"poisoned": (6,), "always_dies_on_resume": (3, 6)}
"""Steps whose checkpoints no resume survives; the first life, which saves them, is killed."""
WRONG |= dict.fromkeys(DEADLY, WRONG["is_killed"])

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 12))

"""The trainer, with one rank that dies, hangs, errs or is asked to stop, and a list of what was learned from.

`RANKS_KILL` is `rank:step:moment`; `RANKS_SAMPLES` is where the list goes. After a restart by torchrun nothing is
killed any more. `RANKS_WAIT` is the moment at which a rank leaves a mark, the file `RANKS_MARK`, and goes on once
the mark is removed.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from crashproof.distillation import command, trainer
from crashproof.distillation.training import training_run
from crashproof.distillation.training.loop import TrainingLoop
from crashproof.pytorch import sharded_checkpoint

START = f"{os.environ.get('RANKS_START')}/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}"
"""One name for all ranks that start together."""
RANK = os.environ.get("RANK", "0")
IS_FIRST_START = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"


def at(step: int | str, moment: str) -> None:
    """Do what is to be done at this moment."""
    name = f"{RANK}:{step}:{moment}"
    if name == os.environ.get("RANKS_WAIT"):
        mark = Path(os.environ["RANKS_MARK"])
        mark.touch()
        while mark.exists():
            time.sleep(0.02)
    if name == os.environ.get("RANKS_KILL") and IS_FIRST_START:
        if "RANKS_MARK" in os.environ:
            Path(os.environ["RANKS_MARK"]).touch()
        DEEDS[moment]()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def kill_in_the_backward_pass() -> None:
    # It has begun then, and the others wait for its gradients.
    threading.Timer(0.002, kill).start()


def keep_the_lock() -> None:
    """As a C extension does that neither returns nor lets go of Python's lock."""
    ctypes.PyDLL(None).sleep(1000)


def err() -> None:
    raise KeyError("a mistake of this rank alone")


DEEDS = {
    "now": kill,
    "step": kill_in_the_backward_pass,
    "save": kill,
    "hang": stop,
    "stopped": stop,
    "asked": lambda: os.kill(os.getpid(), signal.SIGUSR1),
    "locked": keep_the_lock,
    "asleep": lambda: time.sleep(1000),
    "error": err,
}

at(0, "now")

step_of_loop, save_shards = TrainingLoop._step, sharded_checkpoint._write_tensors
prepare, join_ranks = trainer.prepare, trainer.join_ranks
write_student = training_run.write_sharded_student


def step(self: TrainingLoop, step_data: Any) -> None:
    number = self.state.counters.step + 1
    for moment in ("step", "stopped", "locked", "asleep", "error"):
        at(number, moment)
    step_of_loop(self, step_data)
    at(number, "asked")
    if "RANKS_SAMPLES" in os.environ:
        report = {"step": number, "start": START, "samples": step_data.indices}
        with open(os.environ["RANKS_SAMPLES"], "a") as file:
            file.write(json.dumps(report) + "\n")


def write_tensors(partial: Any, tensors: Any, files: Any, ranks: Any) -> Any:
    failure = save_shards(partial, tensors, files, ranks)
    number = partial.name.removeprefix(".checkpoint_").partition(".")[0]
    for moment in ("save", "hang"):
        at(number, moment)
    return failure


def prepare_data(*arguments: Any, **others: Any) -> Any:
    at(0, "preparing")
    return prepare(*arguments, **others)


def gather(*arguments: Any, **others: Any) -> None:
    at(0, "student")
    write_student(*arguments, **others)


def join(**arguments: Any) -> Any:
    at(0, "joining")
    return join_ranks(**arguments)


TrainingLoop._step = step  # type: ignore[method-assign]
sharded_checkpoint._write_tensors = write_tensors
trainer.prepare, trainer.join_ranks = prepare_data, join  # type: ignore[assignment]
training_run.write_sharded_student = gather

if __name__ == "__main__":
    sys.exit(command.main("kd", sys.argv[1:]))

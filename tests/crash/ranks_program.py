"""The trainer, with one rank that dies, hangs or is asked to stop at a moment, and a list of what was learned from.

`RANKS_KILL` is `rank:step:moment`; `RANKS_SAMPLES` is where the list goes. After a restart by torchrun nothing is
killed any more. `RANKS_WAIT` names a moment at which a rank leaves a mark, the file `RANKS_MARK`, and goes on once
the mark is removed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any

from crashproof.distillation.command import main
from crashproof.distillation.training.loop import TrainingLoop
from crashproof.pytorch import sharded_checkpoint

START = f"{os.environ.get('RANKS_START')}/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}"
"""One name for all ranks that start together."""
RANK = int(os.environ.get("RANK", "0"))
WANTED, _, REST = os.environ.get("RANKS_KILL", "").partition(":")
IS_CHOSEN = WANTED == str(RANK) and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
STEP, _, MOMENT = REST.partition(":")

if MOMENT == "now":
    os.kill(os.getpid(), signal.SIGKILL)

step_of_loop, save_shards = TrainingLoop._step, sharded_checkpoint._write_tensors


def step(self: TrainingLoop, step_data: Any) -> None:
    number = self.state.counters.step + 1
    if IS_CHOSEN and str(number) == STEP and MOMENT == "step":
        # In the middle of it: the backward pass of this rank has begun, and the others wait for its gradients.
        threading.Timer(0.002, os.kill, (os.getpid(), signal.SIGKILL)).start()
    step_of_loop(self, step_data)
    if IS_CHOSEN and str(number) == STEP and MOMENT == "asked":
        os.kill(os.getpid(), signal.SIGUSR1)
    report = {"step": number, "start": START, "samples": step_data.indices}
    with open(os.environ["RANKS_SAMPLES"], "a") as file:
        file.write(json.dumps(report) + "\n")


def write_tensors(partial: Any, tensors: Any, files: Any, ranks: Any) -> Any:
    failure = save_shards(partial, tensors, files, ranks)
    if IS_CHOSEN and partial.name.startswith(f".checkpoint_{STEP}."):
        if MOMENT == "save":
            os.kill(os.getpid(), signal.SIGKILL)
        if MOMENT == "hang":
            os.kill(os.getpid(), signal.SIGSTOP)
    return failure


TrainingLoop._step = step  # type: ignore[method-assign]
sharded_checkpoint._write_tensors = write_tensors

if __name__ == "__main__":
    sys.exit(main("kd", sys.argv[1:]))

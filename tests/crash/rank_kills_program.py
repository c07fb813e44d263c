"""The trainer, one of whose ranks kills itself at a moment, and which writes down what each rank learns from.

`KILL` is `rank:moment:number:seconds`: a rank counts how often it comes to a moment (`step`, `save`, `evaluation`,
`join`, `prepare`, `restore`) since it was started, and dies so many seconds after the number-th time. It says so in
the file `KILL_MARK` just before. `SAMPLES` is the file of what was learned from, a line for each rank and step,
written before the step. `STEP_SECONDS` makes each step longer.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crashproof.distillation import command, trainer
from crashproof.distillation.training.loop import TrainingLoop
from crashproof.distillation.training.training_state import TrainingState
from crashproof.pytorch import sharded_checkpoint

RANK = os.environ.get("RANK", "0")
CHOSEN, MOMENT, NUMBER, SECONDS = (os.environ.get("KILL", "") + ":::").split(":")[:4]
times: Counter[str] = Counter()


def die() -> None:
    time.sleep(float(SECONDS))
    Path(os.environ["KILL_MARK"]).write_text(MOMENT)
    os.kill(os.getpid(), signal.SIGKILL)


def come_to(moment: str) -> None:
    times[moment] += 1
    if (CHOSEN, MOMENT, NUMBER) == (RANK, moment, str(times[moment])):
        threading.Thread(target=die, daemon=True).start()


def before(moment: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        come_to(moment)
        return function(*arguments, **named)

    return call


def step(self: TrainingLoop, step_data: Any) -> None:
    number, num_ranks = self.state.counters.step + 1, self.state.ranks.num_ranks
    report = {"step": number, "rank": RANK, "num_ranks": num_ranks, "samples": step_data.indices}
    with open(os.environ["SAMPLES"], "a") as file:
        file.write(json.dumps(report) + "\n")
    come_to("step")
    time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
    step_of_loop(self, step_data)


step_of_loop, evaluate = TrainingLoop._step, TrainingLoop._evaluate
TrainingLoop._step = step  # type: ignore[method-assign]
TrainingLoop._evaluate = before("evaluation", evaluate)  # type: ignore[method-assign]
TrainingState.restore = before("restore", TrainingState.restore)  # type: ignore[method-assign]
sharded_checkpoint._write_tensors = before("save", sharded_checkpoint._write_tensors)
trainer.join_ranks = before("join", trainer.join_ranks)  # type: ignore[assignment]
trainer.prepare = before("prepare", trainer.prepare)  # type: ignore[assignment]

if __name__ == "__main__":
    sys.exit(command.main("kd", sys.argv[1:]))

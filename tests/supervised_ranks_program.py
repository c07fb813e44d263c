"""Ranks that add up their parts at each step; rank 1 of the first life is killed at step 7.

`torchrun … supervised_ranks_program.py DIR [never]`: rank 0 writes the run.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from supervised_program import SAVE_EVERY, save

from crashproof.tracking.context import TrainingProgressContext, get_recovery_checkpoint

STEPS, BAD_STEP = 12, 7


def main(folder: Path, *, kills: bool) -> None:
    """Train the steps that are left."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    is_first = not (folder / "lived").exists()
    dist.barrier()
    found = get_recovery_checkpoint(folder, {})
    state = {"step": 0, "weights": [0.5]} if found is None else json.loads(found[0].read_text())
    with TrainingProgressContext({}, folder, STEPS, is_main_process=rank == 0) as progress:
        (folder / "lived").touch()
        for step in range(state["step"] + 1, STEPS + 1):
            time.sleep(0.02)
            if kills and is_first and rank == 1 and step == BAD_STEP:
                os.kill(os.getpid(), signal.SIGKILL)
            part = torch.tensor([state["weights"][0] * 0.1 * (rank + 1) + step / 100], dtype=torch.float64)
            dist.all_reduce(part)
            state = {"step": step, "weights": part.tolist()}
            progress.update_metrics(step, state["weights"][0], {}, 0.1, step, step)
            if rank == 0 and (step % SAVE_EVERY == 0 or step == STEPS):
                save(folder, progress, state)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), kills=sys.argv[-1] != "never")

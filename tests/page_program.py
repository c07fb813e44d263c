"""A run to be looked at: `page_program.py DIR STEPS SECONDS_A_STEP [KILLED_AT]`."""

from __future__ import annotations

import math
import os
import random
import signal
import sys
import time
from pathlib import Path

from crashproof import get_recovery_checkpoint, training_progress_context, write_atomically

CONFIG = {"model": {"hidden_size": 256, "num_layers": 4}, "train": {"batch_size": 8, "learning_rate": 1e-3}}
SPIKE_AT, NAN_AT = 90, 150


def loss_at(step: int) -> float:
    """The same for every attempt, with one spike and one NaN."""
    if step == NAN_AT:
        return math.nan
    return 9.0 if step == SPIKE_AT else 1.0 + 4.0 * math.exp(-step / 80) + random.Random(step).gauss(0.0, 0.05)


def main(out: Path, total_steps: int, seconds_a_step: float, killed_at: int) -> None:
    """Train, saving every 40 steps; resumes where it was left."""
    checkpoint = get_recovery_checkpoint(out)
    first = int(checkpoint[0].read_text()) + 1 if checkpoint else 1
    with training_progress_context(CONFIG, out, total_steps) as progress:
        for step in range(first, total_steps + 1):
            time.sleep(seconds_a_step)
            loss = loss_at(step)
            rate = 1e-3 * min(1.0, step / 40)
            progress.update_metrics(step, loss, {"kd": 0.6 * loss, "ce": 0.4 * loss}, rate, 8 * step, 1024 * step)
            if step % 40 == 0:
                path = out / f"checkpoint_{step}.txt"
                written = write_atomically(path, lambda file, now=step: file.write(str(now).encode()))
                progress.record_checkpoint(step, path, 8 * step, written=written, is_best=None)
                progress.record_evaluation(step, {"perplexity": math.exp(loss)}, seconds_a_step)
                progress.record_api_response(f"question {step}", {"answer": step}, 0.013)
            if step == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 0)

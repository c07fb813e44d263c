"""Fit a line in a loop that may be killed at any moment.

Run it, kill it, run it again: it goes on from its last checkpoint and ends with the same numbers.

    python examples/plain_loop.py runs/line
"""

import json
import random
import sys
import time
from pathlib import Path

from crashproof import WholeFile, get_recovery_checkpoint, training_progress_context, write_atomically

CONFIG = {"train": {"lr": 0.02, "batch_size": 8, "seed": 7}}


def train(output_dir: Path, *, steps: int = 2000, seconds_per_step: float = 0.002) -> dict[str, float]:
    """Train, or go on training, and return the weights."""
    weights, done = {"slope": 0.0, "offset": 0.0}, 0
    if found := get_recovery_checkpoint(output_dir, CONFIG):
        weights, done = json.loads(found[0].read_text()), found[1] // 8
    print(f"Resuming at step {done:,} ({found[0].name})." if found else "Starting at step 0.", flush=True)

    with training_progress_context(CONFIG, output_dir, steps) as progress:
        for step in range(done + 1, steps + 1):
            loss = improve(weights, random.Random(7_000_000 + step))
            time.sleep(seconds_per_step)  # Stands in for the work of a real step.
            progress.update_metrics(step, loss, {"mse": loss}, 0.02, step * 8, step * 8)
            if step % 200 == 0 or step == steps:
                written = save(output_dir / f"checkpoint_{step}.json", weights)
                progress.record_checkpoint(step, written.path, step * 8, written=written)
    return weights


def save(path: Path, weights: dict[str, float]) -> WholeFile:
    """Write a checkpoint that is there whole or not at all."""
    return write_atomically(path, lambda file: file.write(json.dumps(weights).encode()))


def improve(weights: dict[str, float], chance: random.Random) -> float:
    """One step of gradient descent on a batch that only its own random state decides; return the loss."""
    batch = [(x, 3.0 * x - 1.0 + chance.gauss(0.0, 0.1)) for x in (chance.uniform(-1, 1) for _ in range(8))]
    errors = [(x, weights["slope"] * x + weights["offset"] - y) for x, y in batch]
    weights["slope"] -= 0.02 * sum(error * x for x, error in errors) / 4
    weights["offset"] -= 0.02 * sum(error for _, error in errors) / 4
    return sum(error * error for _, error in errors) / 8


if __name__ == "__main__":
    print(train(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/line")))

"""A small program whose resumes are exact, and the bugs that people write in such programs.

Everything is plain Python, so that a start takes a fraction of a second: a linear model with momentum, dropout, a
learning rate schedule, a gradient scaler, an average of the weights, and accumulated gradients.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["BUGS", "PROGRAM", "Bug", "with_bug"]

PROGRAM = '''
import json
import math
import random
import sys
import time
from pathlib import Path

from crashproof import get_recovery_checkpoint, training_progress_context, write_atomically

OUTPUT = Path(sys.argv[1])
NUM_SAMPLES, MICRO_BATCH, ACCUMULATED, STEPS, SAVE_EVERY = 40, 2, 2, 30, 3
STEP_SIZE = MICRO_BATCH * ACCUMULATED
STEPS_PER_EPOCH = NUM_SAMPLES // STEP_SIZE
CONFIG = {"lr": 0.05, "steps": STEPS}


class Model:
    """Two weights, fitted with momentum."""

    def __init__(self):
        self.weights = {"slope": random.uniform(-0.1, 0.1), "offset": 0.0}
        self.gradients = dict.fromkeys(self.weights, 0.0)

    def loss(self, batch):
        total = 0.0
        for sample in batch:
            x = sample / NUM_SAMPLES
            # Dropout.
            kept = x * (random.random() < 0.8) / 0.8
            error = self.weights["slope"] * kept + self.weights["offset"] - (3 * x - 1)
            self.gradients["slope"] += 2 * error * kept / STEP_SIZE
            self.gradients["offset"] += 2 * error / STEP_SIZE
            total += error * error / STEP_SIZE
        return total


class Optimizer:
    """Momentum."""

    def __init__(self):
        self.momentum = {"slope": 0.0, "offset": 0.0}

    def step(self, model, lr):
        for name, gradient in model.gradients.items():
            self.momentum[name] = 0.9 * self.momentum[name] + gradient
            model.weights[name] -= lr * self.momentum[name]
        model.gradients = dict.fromkeys(model.weights, 0.0)


class Scheduler:
    """A cosine over the whole run."""

    def __init__(self, horizon):
        self.horizon, self.done = horizon, 0

    def lr(self):
        return CONFIG["lr"] * (1 + math.cos(math.pi * self.done / self.horizon)) / 2

    def step(self):
        self.done += 1


class Scaler:
    """Doubles its scale every four steps."""

    def __init__(self):
        self.scale, self.good = 1024.0, 0

    def update(self):
        self.good += 1
        if self.good % 4 == 0:
            self.scale *= 2


def order_of(epoch):
    """The order of the samples in an epoch."""
    order = list(range(NUM_SAMPLES))
    random.Random(1000 + epoch).shuffle(order)
    return order


def micro_batches(done):
    """The batches from a number of finished steps on."""
    epoch, skipped = divmod(done, STEPS_PER_EPOCH)
    while True:
        order = order_of(epoch)
        for start in range(skipped * STEP_SIZE, NUM_SAMPLES, MICRO_BATCH):
            yield order[start : start + MICRO_BATCH]
        epoch, skipped = epoch + 1, 0


random.seed(7)
model, optimizer, scheduler, scaler = Model(), Optimizer(), Scheduler(STEPS), Scaler()
ema = dict(model.weights)
done, best = 0, math.inf
found = get_recovery_checkpoint(OUTPUT, CONFIG)
if found is not None:
    state = json.loads(found[0].read_text())
    done, best = state["done"], state["best"]
    model.weights = state["weights"]
    optimizer.momentum = state["momentum"]
    scheduler.done = state["scheduled"]
    scaler.scale, scaler.good = state["scale"], state["good"]
    ema = state["ema"]
    version, numbers, gauss = state["random"]
    random.setstate((version, tuple(numbers), gauss))
batches = micro_batches(done)

with training_progress_context(CONFIG, OUTPUT, STEPS) as progress:
    for step in range(done + 1, STEPS + 1):
        lr, loss, samples = scheduler.lr(), 0.0, []
        for _ in range(ACCUMULATED):
            samples += batch if (batch := next(batches)) else []
            loss += model.loss(batch)
        optimizer.step(model, lr)
        scheduler.step()
        scaler.update()
        ema = {name: 0.9 * ema[name] + 0.1 * value for name, value in model.weights.items()}
        progress.update_metrics(step, loss, {}, lr, step * STEP_SIZE, 0)
        progress.witness(
            model=model.weights, optimizer=optimizer.momentum, scheduler=vars(scheduler), scaler=vars(scaler),
            ema=ema, batch=samples,
        )
        if step % SAVE_EVERY == 0:
            state = {
                "done": step, "best": best, "weights": model.weights, "momentum": optimizer.momentum,
                "scheduled": scheduler.done, "scale": scaler.scale, "good": scaler.good, "ema": ema,
                "random": random.getstate(),
            }
            if loss < best:
                best = state["best"] = loss
                write_atomically(OUTPUT / "best.json", lambda file: file.write(json.dumps(state).encode()))
            written = write_atomically(
                OUTPUT / f"checkpoint_{step}.json", lambda file: file.write(json.dumps(state).encode())
            )
            progress.record_checkpoint(step, written.path, step * STEP_SIZE, written=written)
'''
"""Thirty steps in three epochs, a checkpoint every three."""


@dataclass(frozen=True)
class Bug:
    """A bug as one change of the program, and what a proof has to say of it."""

    name: str
    old: str
    new: str
    cause: str
    verdict: str = "not_exact"
    steps_after_resume: int = 1
    """Which step of the resume is the first that differs."""
    resume: int | None = 1


BUGS = [
    Bug(
        "optimizer not saved",
        '    optimizer.momentum = state["momentum"]\n',
        "",
        "optimizer_not_restored",
    ),
    Bug(
        "scaler not saved",
        '    scaler.scale, scaler.good = state["scale"], state["good"]\n',
        "",
        "scaler_not_restored",
    ),
    Bug(
        "scheduler stepped twice on resume",
        '    scheduler.done = state["scheduled"]\n',
        '    scheduler.done = state["scheduled"]\n    scheduler.step()\n',
        "schedule_stepped_twice",
    ),
    Bug(
        "horizon recomputed",
        '    scheduler.done = state["scheduled"]\n',
        '    scheduler.done = state["scheduled"]\n    scheduler.horizon = STEPS + done\n',
        "horizon",
    ),
    Bug(
        "loader begins anew",
        "batches = micro_batches(done)\n",
        "batches = micro_batches(done - done % STEPS_PER_EPOCH)\n",
        "data_begin_again",
    ),
    Bug(
        "second resume wrong",
        '                "done": step, ',
        '                "done": step, "consumed": (step - done) if found else step, ',
        "second_resume",
        resume=2,
    ),
    Bug(
        "one extra random draw",
        "batches = micro_batches(done)\n",
        "batches = micro_batches(done)\nif found is not None:\n    random.random()\n",
        "extra_draws",
    ),
    Bug(
        "shuffle seeded by time",
        "random.Random(1000 + epoch)",
        "random.Random(time.time_ns())",
        "shuffle_not_seeded",
        verdict="not_deterministic",
        resume=None,
    ),
    Bug(
        "dropout state not restored",
        "    random.setstate((version, tuple(numbers), gauss))\n",
        "",
        "random_not_restored",
    ),
    Bug(
        "off-by-one skip",
        "batches = micro_batches(done)\n",
        "batches = micro_batches(done + 1 if found else done)\n",
        "samples_skipped",
    ),
    Bug(
        "resume in mid-accumulation",
        "batches = micro_batches(done)\n",
        "batches = micro_batches(done)\nif found is not None:\n    next(batches)\n",
        "mid_accumulation",
    ),
    Bug("EMA forgotten", '    ema = state["ema"]\n', "    ema = dict(model.weights)\n", "average_forgotten"),
    Bug(
        "best weights loaded instead of last",
        '    model.weights = state["weights"]\n',
        '    model.weights = json.loads((OUTPUT / "best.json").read_text())["weights"]\n',
        "other_weights",
    ),
    Bug(
        "epoch order not restored",
        "    epoch, skipped = divmod(done, STEPS_PER_EPOCH)\n",
        "    epoch, skipped = 0, done % STEPS_PER_EPOCH\n",
        "epoch_order",
    ),
]
"""One each, as they are found in real programs."""


def with_bug(bug: Bug, program: str = PROGRAM) -> str:
    """The program with one bug."""
    assert bug.old in program, bug.name
    program = program.replace(bug.old, bug.new)
    if bug.name == "second resume wrong":
        # What is consumed is counted from the start of the process, and saved so.
        program = re.sub(r"(batches = \w+)\(done\)\n", r'\1(state["consumed"] if found else 0)\n', program)
    if bug.name == "best weights loaded instead of last":
        # The best one is another than the last.
        program = program.replace("if loss < best:", "if best == math.inf:")
    return program

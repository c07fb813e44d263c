"""The program of `proved_program`, written in PyTorch as people write it, with the same bugs.

A data loader that shuffles with a generator of its own, AdamW, dropout, a cosine schedule, a gradient scaler, an
average of the weights, gradients accumulated over two batches.
"""

from __future__ import annotations

from proved_program import Bug

__all__ = ["TORCH_BUGS", "TORCH_PROGRAM"]

TORCH_PROGRAM = '''
import random
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from crashproof import get_recovery_checkpoint, training_progress_context, write_atomically

OUTPUT = Path(sys.argv[1])
CONFIG = {"lr": 0.05}
STEPS, ACCUMULATED, STEPS_PER_EPOCH, SAVE_EVERY = 30, 2, 10, 3

torch.set_num_threads(1)
random.seed(7)
np.random.seed(7)
torch.manual_seed(7)
inputs = torch.arange(80.0).reshape(40, 2) / 80
data = TensorDataset(torch.arange(40), inputs, inputs.sum(1, keepdim=True))
model = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.2), nn.Linear(8, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=CONFIG["lr"])
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4)
ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))


def batches_of(epoch):
    """The batches of an epoch, in an order of its own."""
    generator = torch.Generator().manual_seed(1000 + epoch)
    return DataLoader(data, batch_size=2, shuffle=True, generator=generator)


def batches_from(done):
    """The batches behind a number of finished steps."""
    epoch, steps = divmod(done, STEPS_PER_EPOCH)
    skipped = steps * ACCUMULATED
    while True:
        yield from islice(batches_of(epoch), skipped, None)
        epoch, skipped = epoch + 1, 0


def load(path):
    """A state as it was saved."""
    return torch.load(path, weights_only=False)


def restore(state):
    """Continue from a state."""
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    scaler.load_state_dict(state["scaler"])
    ema.load_state_dict(state["ema"])
    torch.set_rng_state(state["torch"])


done, found = 0, get_recovery_checkpoint(OUTPUT, CONFIG)
if found is not None:
    state = load(found[0])
    done = state["step"]
    restore(state)
batches = batches_from(done)

with training_progress_context(CONFIG, OUTPUT, STEPS) as progress:
    for step in range(done + 1, STEPS + 1):
        total, ids = 0.0, []
        for _ in range(ACCUMULATED):
            of_batch, x, y = next(batches)
            loss = nn.functional.mse_loss(model(x), y) / ACCUMULATED
            scaler.scale(loss).backward()
            total += loss.item()
            ids += of_batch.tolist()
        lr = optimizer.param_groups[0]["lr"]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scheduler.step()
        ema.update_parameters(model)
        progress.update_metrics(step, total, {}, lr, step * 4, 0)
        progress.witness(model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler, ema=ema, batch=ids)
        if step % SAVE_EVERY == 0:
            state = {
                "step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(), "scaler": scaler.state_dict(), "ema": ema.state_dict(),
                "torch": torch.get_rng_state(),
            }
            if step == SAVE_EVERY:
                write_atomically(OUTPUT / "best.pt", lambda file: torch.save(state, file))
            path = OUTPUT / f"checkpoint_{step}.pt"
            written = write_atomically(path, lambda file: torch.save(state, file))
            progress.record_checkpoint(step, path, step * 4, written=written)
'''
"""Thirty steps in three epochs, a checkpoint every three."""

TORCH_BUGS = [
    Bug("optimizer not saved", '    optimizer.load_state_dict(state["optimizer"])\n', "", "optimizer_not_restored"),
    Bug("scaler not saved", '    scaler.load_state_dict(state["scaler"])\n', "", "scaler_not_restored"),
    Bug(
        "scheduler stepped twice on resume",
        '    scheduler.load_state_dict(state["scheduler"])\n',
        '    scheduler.load_state_dict(state["scheduler"])\n    optimizer._opt_called = True\n    scheduler.step()\n',
        "schedule_stepped_twice",
    ),
    Bug(
        "horizon recomputed",
        '    scheduler.load_state_dict(state["scheduler"])\n',
        '    scheduler.load_state_dict(state["scheduler"] | {"T_max": STEPS + done})\n',
        "horizon",
    ),
    Bug(
        "loader begins anew",
        "batches = batches_from(done)\n",
        "batches = batches_from(done - done % STEPS_PER_EPOCH)\n",
        "data_begin_again",
    ),
    Bug(
        "second resume wrong",
        '"step": step, ',
        '"step": step, "consumed": step - done if found else step, ',
        "second_resume",
        resume=2,
    ),
    Bug(
        "one extra random draw",
        "batches = batches_from(done)\n",
        "batches = batches_from(done)\nif found is not None:\n    model(inputs[:1])\n",
        "extra_draws",
    ),
    Bug(
        "shuffle seeded by time",
        ".manual_seed(1000 + epoch)",
        ".manual_seed(time.time_ns() % 2**40)",
        "shuffle_not_seeded",
        verdict="not_deterministic",
        resume=None,
    ),
    Bug("dropout state not restored", '    torch.set_rng_state(state["torch"])\n', "", "random_not_restored"),
    Bug(
        "off-by-one skip",
        "batches = batches_from(done)\n",
        "batches = batches_from(max(0, done - 1))\n",
        "samples_repeated",
    ),
    Bug(
        "resume in mid-accumulation",
        "batches = batches_from(done)\n",
        "batches = batches_from(done)\nif found is not None:\n    next(batches)\n",
        "mid_accumulation",
    ),
    Bug(
        "EMA forgotten",
        '    ema.load_state_dict(state["ema"])\n',
        "    ema.update_parameters(model)\n",
        "average_forgotten",
    ),
    Bug(
        "best weights loaded instead of last",
        '    model.load_state_dict(state["model"])\n',
        '    model.load_state_dict(load(OUTPUT / "best.pt")["model"])\n',
        "other_weights",
    ),
    Bug(
        "epoch order not restored",
        "    epoch, steps = divmod(done, STEPS_PER_EPOCH)\n",
        "    epoch, steps = 0, done % STEPS_PER_EPOCH\n",
        "epoch_order",
    ),
]
"""The same, in the same order."""

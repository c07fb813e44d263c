"""Train a small model in a loop with Accelerate that may be killed at any moment.

Run it, kill it, run it again: it goes on in mid-epoch and ends with the same weights, bit for bit.

    python examples/accelerate_loop.py runs/accelerate
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from crashproof.adapters.accelerate import CrashproofTracker
from crashproof.pytorch.interrupts import EXIT_PREEMPTED, Interrupts
from crashproof.pytorch.sampler import DataOrder, ResumableSampler

CONFIG = {"lr": 0.01, "batch_size": 4, "gradient_accumulation": 2, "seed": 7}
SAMPLES_PER_STEP = 8


def made_data(num_samples: int) -> TensorDataset:
    """A noisy line; the target of the first sample is no number, as it happens in real data."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(num_samples, 4, generator=generator)
    targets = inputs.sum(1, keepdim=True) + 0.1 * torch.randn(num_samples, 1, generator=generator)
    targets[0] = float("nan")
    return TensorDataset(inputs, targets)


def train(output_dir: Path, *, steps: int = 60, save_every: int = 4, seconds_per_batch: float = 0.0) -> bool:
    """Train, or go on training; says whether the run is complete."""
    set_seed(CONFIG["seed"])
    tracker = CrashproofTracker(output_dir, total_steps=steps, samples_per_step=SAMPLES_PER_STEP)
    accelerator = Accelerator(cpu=True, log_with=tracker, gradient_accumulation_steps=2)
    accelerator.init_trackers("line", config=CONFIG)

    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=CONFIG["lr"])
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    found = tracker.newest_state()
    step = 0 if found is None else found.checkpoint_step
    if found is not None:
        accelerator.load_state(found.checkpoint_path)
    batches = accelerator.prepare(batches_from(step, steps))

    losses, seen = [], []
    with Interrupts() as interrupts:
        for inputs, targets in batches:
            time.sleep(seconds_per_batch)  # Stands in for the work of a real step.
            with accelerator.accumulate(model):
                rate = optimizer.param_groups[0]["lr"]
                error = (model(inputs) - targets).abs()
                loss = error.square().mean()
                accelerator.backward(loss)
                for parameter in model.parameters():
                    parameter.grad.nan_to_num_(nan=0.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            losses.append(loss.detach())
            seen.append((inputs, targets))
            if not accelerator.sync_gradients:
                continue
            step += 1
            values = {
                "loss": torch.stack(losses).mean(),
                "largest_error": error.detach().max(),
                "learning_rate": rate,
            }
            accelerator.log(values, step=step)
            tracker.witness(accelerator, batch=seen)
            losses, seen = [], []
            if step % save_every == 0 or step == steps or interrupts.is_requested:
                tracker.save_state(accelerator, step, step * SAMPLES_PER_STEP)
            if interrupts.is_requested:
                tracker.end_as("preempted")
                break
    accelerator.end_training()
    torch.save(accelerator.unwrap_model(model).state_dict(), output_dir / "weights.pt")
    return step == steps


def batches_from(step: int, steps: int) -> DataLoader:
    """What is left of the data, in an order that only the seed decides."""
    dataset = made_data(150)
    sampler = ResumableSampler(
        DataOrder(num_samples=len(dataset), seed=CONFIG["seed"]),
        start=step * SAMPLES_PER_STEP,
        num_samples=(steps - step) * SAMPLES_PER_STEP,
    )
    # With a generator of its own, making an iterator draws nothing from the one that dropout draws from.
    return DataLoader(dataset, batch_size=CONFIG["batch_size"], sampler=sampler, generator=torch.Generator())


def main() -> None:
    """Train, and keep the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seconds-per-batch", type=float, default=0.0)
    options = parser.parse_args()
    is_complete = train(options.output_dir, steps=options.steps, seconds_per_batch=options.seconds_per_batch)
    print(f"Done: the weights are in {options.output_dir / 'weights.pt'}.")
    if not is_complete:
        sys.exit(EXIT_PREEMPTED)


if __name__ == "__main__":
    main()

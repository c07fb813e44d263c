"""Training programs that say what they do.

`python kill_trials_program.py WAY OUTPUT_DIR` trains, or goes on training. It prints `opening` before the run is
opened, `started N` with the step it goes on from, `step N`, `saving N` when a save begins, and `acknowledged N` once
it is recorded. The weights at the end are in `OUTPUT_DIR/weights.pt`.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[2] / "examples"


def say(what: str, step: int | None = None) -> None:
    print(what if step is None else f"{what} {step}", flush=True)


def train_with_hf(output_dir: Path) -> None:
    import torch
    from hf_trainer import make_trainer
    from transformers import TrainerCallback

    from crashproof.adapters.transformers import CrashproofCallback

    class Says(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            say("started", state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            say("step", state.global_step)
            if control.should_save:
                say("saving", state.global_step)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            say("acknowledged", state.global_step)

    say("opening")
    trainer = make_trainer(output_dir)
    hold = CrashproofCallback(trainer)
    # After crashproof's own callback, which records the checkpoint.
    trainer.add_callback(Says())
    trainer.train(resume_from_checkpoint=hold.newest_checkpoint())
    torch.save(trainer.model.state_dict(), output_dir / "weights.pt")


def train_with_lightning(output_dir: Path) -> None:
    import lightning_trainer
    import torch
    from lightning.pytorch import Callback
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Says(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            say("started", trainer.global_step)

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            say("step", trainer.global_step)

    class SaysSaves(ModelCheckpoint):
        def _save_checkpoint(self, trainer: Any, filepath: str) -> None:
            say("saving", trainer.global_step)
            super()._save_checkpoint(trainer, filepath)
            say("acknowledged", trainer.global_step)

    say("opening")
    lightning_trainer.ModelCheckpoint = partial(SaysSaves, save_last=True)
    trainer_class = lightning_trainer.Trainer
    lightning_trainer.Trainer = lambda callbacks, **more: trainer_class(callbacks=[*callbacks, Says()], **more)
    model = lightning_trainer.train(output_dir)
    torch.save(model.state_dict(), output_dir / "weights.pt")


def train_with_accelerate(output_dir: Path) -> None:
    import accelerate_loop

    class Says(accelerate_loop.CrashproofTracker):
        def newest_state(self) -> Any:
            found = super().newest_state()
            say("started", 0 if found is None else found.checkpoint_step)
            return found

        def log(self, values: Any, step: int | None = None, **more: Any) -> None:
            super().log(values, step, **more)
            say("step", step)

        def save_state(self, accelerator: Any, step: int, dataset_position: int) -> Path:
            say("saving", step)
            path = super().save_state(accelerator, step, dataset_position)
            say("acknowledged", step)
            return path

    say("opening")
    accelerate_loop.CrashproofTracker = Says
    accelerate_loop.train(output_dir)


def train_in_a_loop(
    output_dir: Path, *, name: str, is_replaced: bool, large_checkpoint_bytes: int = 64 << 20
) -> None:
    """A loop as anybody would write it, with dropout and momentum; `name` may hold the step."""
    import torch
    from torch import nn

    from crashproof import ProgressTracker, TrackerSettings, write_atomically

    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(8, 512), nn.ReLU(), nn.Dropout(0.2), nn.Linear(512, 512), nn.Linear(512, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    say("opening")
    settings = TrackerSettings(large_checkpoint_bytes=large_checkpoint_bytes)
    tracker = ProgressTracker(output_dir / "progress", {"lr": 0.01}, 60, settings=settings)
    found, start = tracker.get_recovery_checkpoint(), 0
    if found is not None:
        state = torch.load(found.checkpoint_path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        start = state["step"]
        assert start == found.checkpoint_step
    say("started", start)
    for step in range(start + 1, 61):
        inputs = torch.randn(16, 8)
        loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tracker.update_metrics(step, loss, {}, 0.01, 16 * step, 0)
        say("step", step)
        if step % 4 == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"random": torch.get_rng_state(), "step": step}
            path = output_dir / name.format(step=step)
            say("saving", step)
            written = write_atomically(path, partial(torch.save, state)) if is_replaced else torch.save(state, path)
            tracker.record_checkpoint(step, path, 16 * step, written=written)
            say("acknowledged", step)
    tracker.close()
    torch.save(model.state_dict(), output_dir / "weights.pt")


WAYS = {
    "hf": train_with_hf,
    "lightning": train_with_lightning,
    "accelerate": train_with_accelerate,
    "written": partial(train_in_a_loop, name="checkpoint_{step}.pt", is_replaced=True),
    "adopted": partial(train_in_a_loop, name="checkpoint_{step}.pt", is_replaced=False),
    "adopted-large": partial(
        train_in_a_loop, name="checkpoint_{step}.pt", is_replaced=False, large_checkpoint_bytes=1 << 20
    ),
    "last-renamed": partial(train_in_a_loop, name="last.pt", is_replaced=True),
    "last-in-place": partial(train_in_a_loop, name="last.pt", is_replaced=False),
}

if __name__ == "__main__":
    sys.path.insert(0, str(EXAMPLES))
    WAYS[sys.argv[1]](Path(sys.argv[2]))

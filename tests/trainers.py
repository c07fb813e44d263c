"""Small HF Trainers, for tests of the adapter."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from crashproof.adapters.transformers import CrashproofCallback

DATA = [{"x": torch.tensor([float(n), 1.0]) / 10, "y": torch.tensor(float(n)) / 5} for n in range(10)]


class Line(torch.nn.Module):
    """The smallest model that a Trainer takes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        guess = self.linear(x)[:, 0]
        return {"loss": ((guess - y) ** 2).mean(), "guess": guess}


class Killed(BaseException):
    """As a SIGKILL: nothing of the framework runs after it."""


class DiesAfterSave(TrainerCallback):
    """Ends the process life once a step is saved, and recorded."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Killed


def make_trainer(output_dir: Path, *, trainer_class: type[Trainer] = Trainer, **more: Any) -> Trainer:
    """Ten samples in batches of two: five steps an epoch."""
    torch.manual_seed(1)
    of_trainer = {name: more.pop(name) for name in ("data_collator", "model_init", "callbacks") if name in more}
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "save_steps": 4,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "label_names": ["y"],
        "output_dir": str(output_dir),
    }
    make_args = more.pop("make_args", TrainingArguments)
    model = None if "model_init" in of_trainer else Line()
    args = make_args(**(settings | more))
    return trainer_class(model, args, train_dataset=DATA, eval_dataset=DATA[:3], **of_trainer)


def train(output_dir: Path, *, killed_after: int | None = None, **more: Any) -> Trainer:
    """One process life; with `killed_after` it ends as soon as that step's checkpoint is recorded."""
    trainer = make_trainer(output_dir, **more)
    hold = CrashproofCallback(trainer)
    if killed_after is not None:
        trainer.add_callback(DiesAfterSave(killed_after))
    with contextlib.suppress(Killed):
        trainer.train(resume_from_checkpoint=hold.newest_checkpoint())
    return trainer

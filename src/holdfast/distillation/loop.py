"""The training loop that every recipe shares."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast.context import TrainingProgressContext
from holdfast.distillation.data import Batch, TrainingData
from holdfast.distillation.display import ShownProgress
from holdfast.distillation.recipe import Recipe
from holdfast.distillation.schedule import learning_rate_at
from holdfast.distillation.sections import Section
from holdfast.distillation.training_state import TrainingState
from holdfast.errors import StorageError, TeacherError
from holdfast.pytorch.checkpoint_file import save_checkpoint
from holdfast.pytorch.device import ComputeDevice, DeviceName, PrecisionName
from holdfast.pytorch.interrupts import Interrupts, StopRequested
from holdfast.pytorch.sampler import DataOrder

__all__ = ["ProgressConfig", "TrainConfig", "TrainingLoop", "new_optimizer"]

log = logging.getLogger("holdfast")


class TrainConfig(Section):
    """`train`: how long and how fast."""

    steps: int = Field(default=200, ge=1)
    """Optimizer steps of the whole run."""
    batch_size: int = Field(default=8, ge=1)
    """Samples of one forward pass."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Forward passes of one optimizer step."""
    learning_rate: float = Field(default=2e-3, gt=0)
    warmup_steps: int = Field(default=10, ge=0)
    schedule_steps: int | None = Field(default=None, ge=1)
    """Where the learning rate reaches its end; by default `steps` as of the run's first start."""
    final_fraction: float = Field(default=0.1, ge=0, le=1)
    """Of the learning rate, at that end."""
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    seed: int = 0
    device: DeviceName = "auto"
    precision: PrecisionName = "auto"


class ProgressConfig(Section):
    """`progress`: what never changes the result."""

    checkpoint_interval: int = Field(default=50, ge=1)
    """Optimizer steps between two checkpoints; the last step always has one."""


@dataclass(slots=True, kw_only=True)
class TrainingLoop:
    """Trains a recipe from where its state stands."""

    recipe: Recipe
    data: TrainingData
    state: TrainingState
    train: TrainConfig
    progress: ProgressConfig
    device: ComputeDevice
    context: TrainingProgressContext
    output_dir: Path
    interrupts: Interrupts

    def run(self, shown: ShownProgress) -> bool:
        """Train to the last step, or until somebody asks to stop; says whether the run is complete.

        When it returns, the newest step is in a checkpoint.

        Raises:
            DiskFull, StorageUnwritable: the last checkpoint could not be saved.
            TeacherError: a paid teacher gave no answer; the steps before are saved.
        """
        order = DataOrder(num_samples=len(self.data), seed=self.train.seed)
        counters = self.state.counters
        saved_step = counters.step
        for module in self.recipe.modules().values():
            module.train()
        while counters.step < self.train.steps and not self.interrupts.is_requested:
            try:
                loss = self._step(order)
            except StopRequested:
                # While a batch waited for its teacher; nothing of the step was done.
                break
            except TeacherError:
                if counters.step > saved_step:
                    self._save(loss, must_succeed=True)
                raise
            shown.advance(counters.step, loss=loss, remaining=self.context.get_remaining_seconds)
            if counters.step % self.progress.checkpoint_interval == 0 and self._save(loss):
                saved_step = counters.step
        if counters.step > saved_step:
            self._save(loss, must_succeed=True)
        return counters.step >= self.train.steps

    def _step(self, order: DataOrder) -> float:
        """One optimizer step over all its forward passes; reports it and returns its loss."""
        counters, train = self.state.counters, self.train
        batches = [
            self.data.batch(order.indices(counters.samples + place * train.batch_size, train.batch_size))
            for place in range(train.gradient_accumulation)
        ]
        num_tokens = sum(batch.num_counted() for batch in batches)
        learning_rate = learning_rate_at(
            counters.step + 1,
            peak=train.learning_rate,
            warmup_steps=train.warmup_steps,
            schedule_steps=counters.schedule_steps,
            final_fraction=train.final_fraction,
        )
        for group in self.state.optimizer.param_groups:
            group["lr"] = learning_rate
        components = self._accumulated_gradients(batches, max(1, num_tokens))
        self._apply_gradients()
        counters.step += 1
        counters.samples += train.batch_size * train.gradient_accumulation
        counters.tokens += num_tokens
        numbers = {name: float(value) for name, value in components.items()}
        loss = sum(self.recipe.weights[name] * value for name, value in numbers.items())
        self.context.update_metrics(
            step=counters.step,
            loss=loss,
            loss_components=numbers,
            learning_rate=learning_rate,
            samples_processed=counters.samples,
            tokens_processed=counters.tokens,
        )
        return loss

    def _accumulated_gradients(self, batches: list[Batch], num_tokens: int) -> dict[str, Tensor]:
        """Gradients of the mean over all counted tokens of the step; returns that mean of each component."""
        self.state.optimizer.zero_grad(set_to_none=True)
        components: dict[str, Tensor] = {}
        for batch in batches:
            with self.device.autocast():
                sums = self.recipe.loss_sums(batch.to(self.device.device))
            means = {name: value / num_tokens for name, value in sums.items()}
            total = torch.stack([self.recipe.weights[name] * value for name, value in means.items()]).sum()
            self.state.scaler.scale(total).backward()  # type: ignore[no-untyped-call]  # torch leaves it so.
            for name, value in means.items():
                components[name] = components.get(name, 0) + value.detach()
        return components

    def _apply_gradients(self) -> None:
        self.state.scaler.unscale_(self.state.optimizer)
        parameters = [each for module in self.recipe.modules().values() for each in module.parameters()]
        torch.nn.utils.clip_grad_norm_(parameters, self.train.clip_norm)
        self.state.scaler.step(self.state.optimizer)
        self.state.scaler.update()

    def _save(self, loss: float, *, must_succeed: bool = False) -> bool:
        """Save and record a checkpoint; with a full disk, say so and train on, unless nothing comes after it.

        Raises:
            DiskFull, StorageUnwritable: with `must_succeed`, it could not be saved.
        """
        begun_at = time.monotonic()
        counters = self.state.counters
        earlier_best = counters.best_loss
        counters.best_loss = min(loss, earlier_best)
        path = self.output_dir / f"checkpoint_{counters.step}.pt"
        try:
            written = save_checkpoint(path, self.state.capture())
            self.context.record_checkpoint(
                step=counters.step,
                checkpoint_path=path,
                dataset_position=counters.samples,
                is_best=loss < earlier_best,
                written=written,
                seconds=time.monotonic() - begun_at,
            )
        except StorageError as error:
            counters.best_loss = earlier_best
            if must_succeed:
                raise
            log.warning("No checkpoint at step %s: %s Training goes on.", f"{counters.step:,}", error)
            return False
        return True


def new_optimizer(modules: dict[str, nn.Module], train: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over all parameters; vectors (norms) do not decay."""
    parameters = [each for module in modules.values() for each in module.parameters()]
    groups = [
        {"params": [each for each in parameters if each.dim() >= 2], "weight_decay": train.weight_decay},
        {"params": [each for each in parameters if each.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=(0.9, 0.95))

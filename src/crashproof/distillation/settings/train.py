"""The config of the training itself."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from crashproof.distillation.settings.section import Section
from crashproof.pytorch.device import DeviceName, PrecisionName

__all__ = [
    "TrainConfig",
]


class TrainConfig(Section):
    """`train`: how long and how fast."""

    steps: int = Field(default=200, ge=1)
    """Optimizer steps of the whole run."""
    batch_size: int = Field(default=8, ge=1)
    """Samples of one forward pass over all processes; their number must divide it."""
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
    skips_nonfinite: bool = True
    """A step whose gradients hold NaN or infinities changes no weight; its loss is reported all the same."""
    seed: int = 0
    device: DeviceName = "auto"
    precision: PrecisionName = "auto"
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Of many processes: each holds the whole model, or a shard of it."""
    limit_seconds: float = Field(default=600.0, gt=0)
    """The longest that one process waits for another."""
    compile: bool = False
    """Compile the student's layers (`torch.compile`)."""
    checkpoints_activations: bool = False
    """Compute the layers' activations again in the backward pass instead of keeping them."""

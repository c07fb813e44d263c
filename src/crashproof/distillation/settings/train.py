"""Settings of the training loop."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from crashproof.distillation.settings.section import Section
from crashproof.records.states import OnBadStep

__all__ = ["TrainConfig"]


class TrainConfig(Section):
    """`train`: the training loop."""

    steps: int = Field(default=200, ge=1)
    """Optimizer steps of the whole run."""
    batch_size: int = Field(default=8, ge=1)
    """Samples per forward pass over all processes; a multiple of the number of processes."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Forward passes per optimizer step."""
    learning_rate: float = Field(default=2e-3, gt=0)
    warmup_steps: int = Field(default=10, ge=0)
    schedule_steps: int | None = Field(default=None, ge=1)
    """Step at which the schedule ends; default: `steps` at the run's first start."""
    final_fraction: float = Field(default=0.1, ge=0, le=1)
    """Fraction of the learning rate at the end of the schedule."""
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    skips_nonfinite: bool = True
    """Skip the update of a step with non-finite gradients; its loss is still reported."""
    on_bad_step: OnBadStep | None = None
    """What to do about a step whose loss is not finite, or a spike: stop, skip its update, or roll back to the newest
    healthy checkpoint and leave its samples out if they are bad again. null: nothing more than `skips_nonfinite`."""
    max_bad_steps: int = Field(default=10, ge=0, le=50)
    """Bad steps that a run may have, if it is not to stop at the first; one more stops it."""
    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """With several processes: each holds the complete model (ddp) or a shard of it (fsdp)."""
    limit_seconds: float = Field(default=600.0, gt=0)
    """Maximum seconds that one process waits for another."""
    compile: bool = False
    """Compile the student's layers (`torch.compile`)."""
    checkpoints_activations: bool = False
    """Activation checkpointing: recompute the layers' activations in the backward pass."""

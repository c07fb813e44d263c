"""Every recipe by its name."""

from __future__ import annotations

from holdfast.distillation.recipe import Task
from holdfast.distillation.recipe_kd import KD

__all__ = ["TASKS"]

TASKS: dict[str, Task] = {task.name: task for task in (KD,)}
"""What `python -m training.distill_<name>` runs."""

"""Every recipe by its name."""

from __future__ import annotations

from holdfast.distillation.recipe import Task
from holdfast.distillation.recipe_answer_generation import ANSWER_GENERATION
from holdfast.distillation.recipe_kd import KD
from holdfast.distillation.recipe_process import PROCESS
from holdfast.distillation.recipe_tool_select import TOOL_SELECT

__all__ = ["TASKS"]

TASKS: dict[str, Task] = {task.name: task for task in (KD, PROCESS, ANSWER_GENERATION, TOOL_SELECT)}
"""What `python -m training.distill_<name>` runs."""

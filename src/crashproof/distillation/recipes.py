"""Every recipe by its name."""

from __future__ import annotations

from crashproof.distillation.recipe import Task
from crashproof.distillation.recipe_answer_generation import ANSWER_GENERATION
from crashproof.distillation.recipe_kd import KD
from crashproof.distillation.recipe_process import PROCESS
from crashproof.distillation.recipe_tool_select import TOOL_SELECT

__all__ = ["TASKS"]

TASKS: dict[str, Task] = {task.name: task for task in (KD, PROCESS, ANSWER_GENERATION, TOOL_SELECT)}
"""What `python -m training.distill_<name>` runs."""

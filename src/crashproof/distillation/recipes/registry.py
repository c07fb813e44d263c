"""All recipes, by name."""

from __future__ import annotations

from crashproof.distillation.recipes.answer_generation import ANSWER_GENERATION
from crashproof.distillation.recipes.kd import KD
from crashproof.distillation.recipes.process import PROCESS
from crashproof.distillation.recipes.task import AnyTask
from crashproof.distillation.recipes.tool_select import TOOL_SELECT

__all__ = ["TASKS"]

TASKS: dict[str, AnyTask] = {task.name: task for task in (KD, PROCESS, ANSWER_GENERATION, TOOL_SELECT)}
"""`python -m training.distill_<name>` runs the task of that name."""

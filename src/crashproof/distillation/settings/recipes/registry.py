"""The configs of all recipes, by name."""

from __future__ import annotations

from crashproof.distillation.settings.recipes.answer_generation import AnswerGenerationConfig
from crashproof.distillation.settings.recipes.kd import KdConfig
from crashproof.distillation.settings.recipes.process import ProcessConfig
from crashproof.distillation.settings.recipes.tool_select import ToolSelectConfig
from crashproof.distillation.settings.run import RunConfig

__all__ = ["CONFIGS"]

CONFIGS: dict[str, type[RunConfig]] = {
    "kd": KdConfig,
    "process": ProcessConfig,
    "answer_generation": AnswerGenerationConfig,
    "tool_select": ToolSelectConfig,
}
"""`python -m training.distill_<name>` reads the config of that name."""

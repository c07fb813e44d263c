"""The config of recipes with tools."""

from __future__ import annotations

from pydantic import Field

from crashproof.distillation.settings.data import DataConfig
from crashproof.distillation.settings.run import RunConfig

__all__ = ["ToolDataConfig", "ToolRunConfig"]


class ToolDataConfig(DataConfig):
    """`data` of a recipe with tools.

    Lines are `{"messages", "tools"}` as OpenAI's chat API takes them; without `path` a task is generated.
    """

    max_length: int = Field(default=1024, ge=2)
    """Maximum tokens per sample; default: as many as the models of `path` accept, at most 4,096; this number for new
    ones."""
    samples: int = Field(default=600, ge=1)
    """Number of lines of the generated task."""
    task_seed: int = 0
    """Seed of the generated task."""
    restated_words: int = Field(default=3, ge=1)
    """Minimum words of a part of a tool's value to count as restated; complete values always do."""


class ToolRunConfig(RunConfig):
    """The config of a recipe with tools."""

    data: ToolDataConfig = ToolDataConfig()

"""The config of `distill_tool_select`."""

from __future__ import annotations

from pydantic import Field, model_validator

from crashproof.distillation.settings.loss import LossConfig
from crashproof.distillation.settings.recipes.tools import ToolRunConfig
from crashproof.distillation.settings.run import require_no_teacher

__all__ = ["ToolSelectConfig", "ToolSelectLossConfig"]


class ToolSelectLossConfig(LossConfig):
    """`loss`: the weight of each part; a part of weight 0 is not computed."""

    tool_selection: float = Field(default=1.0, ge=0)
    """Cross-entropy from the beginning of the turn to the end of the tool's name."""
    argument_synthesis: float = Field(default=1.0, ge=0)
    """Cross-entropy from there to the end of the turn."""
    distractors: float = Field(default=1.0, ge=0)
    """Within `tool_selection`: the weight of the choice among the offered names beside the cross-entropy."""


class ToolSelectConfig(ToolRunConfig):
    """The config of `distill_tool_select`."""

    loss: ToolSelectLossConfig = ToolSelectLossConfig()

    @model_validator(mode="after")
    def _has_no_teacher(self) -> ToolSelectConfig:
        require_no_teacher(self, "tool_select")
        return self

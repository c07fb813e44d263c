"""The config of `distill_process`."""

from __future__ import annotations

from pydantic import Field, model_validator

from crashproof.distillation.settings.loss import DivergenceConfig
from crashproof.distillation.settings.recipes.tools import ToolRunConfig

__all__ = ["ProcessConfig", "ProcessLossConfig"]


class ProcessLossConfig(DivergenceConfig):
    """`loss`: the weight of each part; a part of weight 0 is not computed."""

    json_validity: float = Field(default=1.0, ge=0)
    """Minus the log of the probability mass that the tool's JSON Schema allows."""
    tool_selection: float = Field(default=1.0, ge=0)
    """Cross-entropy from the beginning of a call's turn to the end of the tool's name."""
    integration: float = Field(default=1.0, ge=0)
    """Cross-entropy of what the answer restates of the tools' results."""
    kd: float = Field(default=1.0, ge=0)
    """Forward KL from the teacher's distribution to the student's, over all tokens of the assistant."""
    ce: float = Field(default=0.5, ge=0)
    """Cross-entropy over all tokens of the assistant."""
    distractors: float = Field(default=1.0, ge=0)
    """Within `tool_selection`: the weight of the choice among the offered names beside the cross-entropy."""


class ProcessConfig(ToolRunConfig):
    """The config of `distill_process`."""

    loss: ProcessLossConfig = ProcessLossConfig()

    @property
    def divergence(self) -> ProcessLossConfig | None:
        """See `RunConfig.divergence`."""
        return self.loss if self.loss.kd > 0 else None

    @model_validator(mode="after")
    def _has_a_model_as_teacher(self) -> ProcessConfig:
        if not self.teacher.is_a_model:
            raise ValueError(
                f"process learns from a model or from the lines alone, and teacher.kind is {self.teacher.kind}: use "
                "builtin or local, or set loss.kd to 0 and leave teacher out"
            )
        return self

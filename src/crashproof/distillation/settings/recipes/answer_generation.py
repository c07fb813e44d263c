"""The config of `distill_answer_generation`."""

from __future__ import annotations

from pydantic import Field, model_validator

from crashproof.distillation.settings.data import DataConfig
from crashproof.distillation.settings.loss import LossConfig
from crashproof.distillation.settings.run import RunConfig, require_no_teacher

__all__ = ["AnswerDataConfig", "AnswerGenerationConfig", "AnswerLossConfig"]


class AnswerDataConfig(DataConfig):
    """`data` of `distill_answer_generation`; without `path` a task is generated."""

    max_length: int = Field(default=256, ge=2)
    """Maximum tokens per sample; default: as many as the models of `path` accept, at most 4,096; this number for new
    ones."""
    samples: int = Field(default=2000, ge=1)
    """Number of lines of the generated task."""
    task_seed: int = 0
    """Seed of the generated task."""


class AnswerLossConfig(LossConfig):
    """`loss`: the weight of each part; a part of weight 0 is not computed."""

    generation: float = Field(default=1.0, ge=0)
    """Cross-entropy of the answers without a `quality`, per token."""
    answer_quality: float = Field(default=0.25, ge=0)
    """Per judged answer, its odds ratio against the rejected one, or its likelihood times its quality. At 0, answers
    with a quality are not learned."""


class AnswerGenerationConfig(RunConfig):
    """The config of `distill_answer_generation`."""

    data: AnswerDataConfig = AnswerDataConfig()
    loss: AnswerLossConfig = AnswerLossConfig()

    @model_validator(mode="after")
    def _has_no_teacher(self) -> AnswerGenerationConfig:
        require_no_teacher(self, "answer_generation")
        return self

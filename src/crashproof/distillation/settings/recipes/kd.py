"""The config of `distill_kd`."""

from __future__ import annotations

from pydantic import Field, model_validator

from crashproof.distillation.settings.loss import DivergenceConfig
from crashproof.distillation.settings.run import RunConfig

__all__ = ["KdConfig", "KdLossConfig"]


class KdLossConfig(DivergenceConfig):
    """`loss`: the weight of each part; a part of weight 0 is not computed."""

    kd: float = Field(default=1.0, ge=0)
    """Forward KL from the teacher's distribution to the student's."""
    ce: float = Field(default=0.5, ge=0)
    """Cross-entropy of the text itself."""
    intermediate: float = Field(default=0.1, ge=0)
    """Distance between the projected hidden states of student and teacher."""
    layers: dict[int, int] | None = None
    """Student layer → teacher layer, counted from 1; by default spread evenly, last to last."""


class KdConfig(RunConfig):
    """The config of `distill_kd`."""

    loss: KdLossConfig = KdLossConfig()

    @property
    def divergence(self) -> KdLossConfig | None:
        """See `RunConfig.divergence`."""
        return self.loss if self.loss.kd > 0 or self.loss.intermediate > 0 else None

    @model_validator(mode="after")
    def _compares_hidden_states_with_a_model(self) -> KdConfig:
        if self.loss.intermediate > 0 and not self.teacher.is_a_model:
            raise ValueError(
                f"loss.intermediate is {self.loss.intermediate}, and a teacher of kind {self.teacher.kind} has no "
                "hidden states to compare: set loss.intermediate to 0"
            )
        return self

    @model_validator(mode="after")
    def _can_use_logprobs_of_the_data(self) -> KdConfig:
        if self.teacher.kind != "logprobs":
            return self
        if self.data.path is None:
            raise ValueError("a teacher of kind logprobs is in the data: set data.path to a file of answers")
        if self.loss.kd > 0 and self.loss.temperature != 1.0:
            raise ValueError(
                f"loss.temperature is {self.loss.temperature}, and log-probabilities of a file are not softened: set "
                "it to 1, or set teacher.kind to builtin to leave the file's log-probabilities unused"
            )
        return self

    @model_validator(mode="after")
    def _can_use_a_paid_teacher(self) -> KdConfig:
        if self.teacher.kind != "api":
            return self
        if self.data.path is None:
            raise ValueError("a teacher of kind api answers prompts: set data.path to a file of them")
        if self.loss.kd > 0 and self.teacher.logprobs is None:
            raise ValueError(
                f"loss.kd is {self.loss.kd}, and without teacher.logprobs an answer is text alone: set loss.kd to 0, "
                "or set teacher.logprobs"
            )
        if self.loss.kd > 0 and self.loss.temperature != 1.0:
            raise ValueError(
                f"loss.temperature is {self.loss.temperature}, and an API's probabilities are not softened: set it "
                "to 1"
            )
        return self

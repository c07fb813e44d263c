"""The complete config of a trainer."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import AliasChoices, Field

from crashproof.alerts.settings import AlertSettings
from crashproof.distillation.settings.data import DataConfig
from crashproof.distillation.settings.loss import DivergenceConfig, LossConfig
from crashproof.distillation.settings.models import StudentConfig
from crashproof.distillation.settings.progress import ProgressConfig
from crashproof.distillation.settings.section import Section
from crashproof.distillation.settings.teacher import TeacherConfig
from crashproof.distillation.settings.train import TrainConfig

__all__ = ["RunConfig", "TokenizerConfig", "require_no_teacher"]


class TokenizerConfig(Section):
    """`tokenizer`: trained on the data, unless a model folder contains one."""

    vocab_size: int = Field(default=1024, ge=258)
    """At least 256 bytes and two special tokens."""


class RunConfig(Section):
    """Sections of every recipe's config; recipes extend `data` and `loss`. Everything has a default."""

    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = Field(default=StudentConfig(), validation_alias=AliasChoices("student", "model"))
    """Also read as `model`."""
    train: TrainConfig = TrainConfig()
    loss: LossConfig = LossConfig()
    progress: ProgressConfig = ProgressConfig()

    @property
    def divergence(self) -> DivergenceConfig | None:
        """How a teacher's distribution is compared with the student's; None if no teacher is needed."""
        return None

    @property
    def evaluates_nothing(self) -> bool:
        """Whether no data are held out to evaluate on."""
        return self.data.held_out == 0 and self.data.eval_path is None and self.data.eval_split is None

    def alert_settings(self, environment: Mapping[str, str]) -> AlertSettings:
        """The alert settings of a trainer.

        Raises:
            ConfigError: an address names an environment variable that is not set.
        """
        budget = self.teacher.budget if self.teacher.kind == "api" else None
        return self.progress.alerts.settings(environment, budget=budget)


def require_no_teacher(config: RunConfig, recipe: str) -> None:
    """Refuse a teacher that would never be asked; a built-in or local one is not even loaded.

    Raises:
        ValueError: the teacher is an API, or captured logits.
    """
    if not config.teacher.is_a_model:
        raise ValueError(f"{recipe} asks no teacher, and teacher.kind is {config.teacher.kind}: leave teacher out")

"""The complete config of a trainer."""

from __future__ import annotations

from pydantic import AliasChoices, Field

from crashproof.distillation.settings.data import DataConfig
from crashproof.distillation.settings.loss import LossConfig
from crashproof.distillation.settings.models import StudentConfig
from crashproof.distillation.settings.progress import ProgressConfig
from crashproof.distillation.settings.section import Section
from crashproof.distillation.settings.teacher import TeacherConfig
from crashproof.distillation.settings.train import TrainConfig

__all__ = ["RunConfig", "TokenizerConfig"]


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

"""The config of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from holdfast.distillation.config_errors import described
from holdfast.distillation.config_files import ConfigSource, merged, override, read_config_file
from holdfast.distillation.corpus import DataConfig
from holdfast.distillation.loop import TrainConfig
from holdfast.distillation.section import Section
from holdfast.distillation.student import StudentConfig
from holdfast.distillation.teacher import TeacherConfig
from holdfast.errors import ConfigError

__all__ = ["ProgressConfig", "RunConfig", "load_config"]

C = TypeVar("C", bound="RunConfig")


class ProgressConfig(Section):
    """When to save and what to show; nothing here changes what is computed, so all of it may change on a resume."""

    checkpoint_interval: PositiveInt = 100
    """Steps from one checkpoint to the next; the last step always gets one."""
    log_every_seconds: PositiveFloat = 10.0
    """Pace of progress lines where the output is no terminal."""
    cache_dir: Path | None = None
    """Where the trained teacher, the tokenizer and the tokens are kept; `cache/` in the run's folder where absent."""


class RunConfig(Section):
    """What every recipe's config has; a recipe adds its losses."""

    data: DataConfig = Field(default_factory=DataConfig)
    teacher: TeacherConfig = Field(default_factory=TeacherConfig)
    student: StudentConfig = Field(default_factory=StudentConfig)
    """May also be called `model`."""
    train: TrainConfig = Field(default_factory=TrainConfig)
    progress: ProgressConfig = Field(default_factory=ProgressConfig)


def load_config(
    schema: type[C], files: Sequence[Path], overrides: Sequence[str] = (), *, steps: int | None = None
) -> C:
    """Read, merge and check; later files win, overrides come after them, `steps` last.

    Raises:
        ConfigError: a file cannot be read, or a key is unknown or has a value that it cannot have.
    """
    sources = [read_config_file(path) for path in files] + [override(setting) for setting in overrides]
    if steps is not None:
        sources.append(ConfigSource(name="--steps", values={"train": {"steps": steps}}))
    sources = [_under_one_name(source) for source in sources]
    try:
        return schema.model_validate(merged(sources))
    except ValidationError as error:
        raise described(error, schema, sources) from error


def _under_one_name(source: ConfigSource) -> ConfigSource:
    """The section `model` is the student's under its everyday name."""
    if "model" not in source.values:
        return source
    if "student" in source.values:
        raise ConfigError(
            f"{source.name} has both `model` and `student`, which are two names of one section.",
            hint="Put all of the student's keys under one of them.",
        )
    values: dict[str, Any] = {("student" if key == "model" else key): value for key, value in source.values.items()}
    return ConfigSource(name=source.name, values=values)

"""The config of a trainer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import AliasChoices, Field, model_validator

from holdfast.distillation.data import DataConfig
from holdfast.distillation.loop import ProgressConfig, TrainConfig
from holdfast.distillation.losses import LossConfig
from holdfast.distillation.models import StudentConfig
from holdfast.distillation.sections import Section, validated
from holdfast.distillation.teacher import TeacherConfig
from holdfast.errors import ConfigError
from holdfast.strict_yaml import StrictLoader

__all__ = ["RunConfig", "TokenizerConfig", "files_and_overrides", "load_config"]


class TokenizerConfig(Section):
    """`tokenizer`: trained on the data, unless a model folder brings one."""

    vocab_size: int = Field(default=1024, ge=258)
    """256 bytes and two special tokens at least."""


class RunConfig(Section):
    """A whole config; every section and key has a default."""

    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = Field(default=StudentConfig(), validation_alias=AliasChoices("student", "model"))
    """Also read as `model`."""
    train: TrainConfig = TrainConfig()
    loss: LossConfig = LossConfig()
    progress: ProgressConfig = ProgressConfig()

    @model_validator(mode="after")
    def _compares_hidden_states_with_a_model(self) -> RunConfig:
        if self.loss.intermediate > 0 and not self.teacher.is_a_model:
            raise ValueError(
                f"loss.intermediate is {self.loss.intermediate}, and a teacher of kind {self.teacher.kind} has no "
                "hidden states to compare: set loss.intermediate to 0"
            )
        return self

    @model_validator(mode="after")
    def _learns_what_a_paid_teacher_says(self) -> RunConfig:
        if self.teacher.kind != "api":
            return self
        if self.data.path is None:
            raise ValueError("a teacher of kind api answers prompts: set data.path to a file of them")
        if self.loss.kd > 0 and self.teacher.logprobs is None:
            raise ValueError(
                f"loss.kd is {self.loss.kd}, and without teacher.logprobs an answer is text alone: set loss.kd to 0, "
                "or ask for teacher.logprobs"
            )
        if self.loss.kd > 0 and self.loss.temperature != 1.0:
            raise ValueError(
                f"loss.temperature is {self.loss.temperature}, and an API's probabilities are not softened: set it "
                "to 1"
            )
        return self


def load_config(files: Sequence[Path], overrides: Sequence[str] = (), *, steps: int | None = None) -> RunConfig:
    """Merge YAML files, later ones winning key by key, then `key.path=value` overrides, then `--steps`.

    Raises:
        ConfigError: a file is missing, no YAML or no mapping; a key is unknown; a value is unusable.
    """
    content: dict[str, Any] = {}
    for file in files:
        content = _merged(content, _read(file))
    for override in overrides:
        content = _merged(content, _parsed(override))
    if steps is not None:
        content = _merged(content, {"train": {"steps": steps}})
    if "student" in content and "model" in content:
        raise ConfigError("The config has both student and model.", hint="They are one section; keep one of them.")
    return validated(RunConfig, content)


def files_and_overrides(words: Iterable[str | Path]) -> tuple[list[Path], list[str]]:
    """Tell config files from `key.path=value`: whatever has an equals sign and is no file is an override."""
    files: list[Path] = []
    overrides: list[str] = []
    for word in map(str, words):
        if "=" in word and not Path(word).exists():
            overrides.append(word)
        else:
            files.append(Path(word))
    return files, overrides


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=StrictLoader)  # noqa: S506 - a safe one
    except OSError as error:
        raise ConfigError(f"The config {file} cannot be read ({error.strerror}).", hint="Check --config.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"The config {file} is no YAML: {' '.join(str(error).split())}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"The config {file} must be a mapping, not a {type(content).__name__}.",
            hint="Write sections such as `train:` with keys under them.",
        )
    return {str(key): value for key, value in content.items()}


def _parsed(override: str) -> dict[str, Any]:
    """`train.steps=5` as `{"train": {"steps": 5}}`; the value is read as YAML."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise ConfigError(f"{override!r} is no override.", hint="Write key.path=value, such as train.steps=100.")
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The value of {name} is no YAML: {text!r}.") from error
    for key in reversed(name.split(".")):
        value = {key: value}
    return dict(value)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        earlier = merged.get(key)
        merged[key] = _merged(earlier, value) if isinstance(earlier, dict) and isinstance(value, dict) else value
    return merged

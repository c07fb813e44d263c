"""Read a config from files and overrides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from crashproof.distillation.settings.run import RunConfig
from crashproof.distillation.settings.section import validated
from crashproof.errors import ConfigError
from crashproof.strict_yaml import StrictLoader

__all__ = [
    "files_and_overrides",
    "load_config",
]

ConfigT = TypeVar("ConfigT", bound=RunConfig)


def load_config(kind: type[ConfigT], files: Sequence[Path], overrides: Sequence[str] = ()) -> ConfigT:
    """Merge YAML files, later ones winning key by key, then `key.path=value` overrides.

    Raises:
        ConfigError: a file is missing, no YAML or no mapping; a key is unknown; a value is unusable.
    """
    content: dict[str, Any] = {}
    for file in files:
        content = _merged(content, _read(file))
    for override in overrides:
        content = _merged(content, _parsed(override))
    if "student" in content and "model" in content:
        raise ConfigError("The config has both student and model.", hint="They are one section; keep one of them.")
    return validated(kind, content)


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

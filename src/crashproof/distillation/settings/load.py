"""Loading of configs from files and overrides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import yaml

from crashproof.distillation.settings.run import RunConfig
from crashproof.distillation.settings.section import validated
from crashproof.errors import ConfigError
from crashproof.strict_yaml import MAX_DEPTH, StrictLoader

__all__ = ["files_and_overrides", "load_config"]

ConfigT = TypeVar("ConfigT", bound=RunConfig)


def load_config(kind: type[ConfigT], files: Sequence[Path], overrides: Sequence[str] = ()) -> ConfigT:
    """Merge YAML files, later ones winning key by key, then `key.path=value` overrides.

    Raises:
        ConfigError: A file is missing, not YAML or not a mapping; a key is unknown; a value is invalid.
    """
    content: dict[str, object] = {}
    for file in files:
        content = _merged(content, _read(file))
    for override in overrides:
        content = _merged(content, _parsed(override))
    if "student" in content and "model" in content:
        raise ConfigError(
            "The config has both student and model.", hint="They are the same section; keep one of them."
        )
    return validated(kind, content)


def files_and_overrides(words: Iterable[str | Path]) -> tuple[list[Path], list[str]]:
    """Separate config files from `key.path=value` overrides: words with an equals sign that are not files."""
    files: list[Path] = []
    overrides: list[str] = []
    for word in map(str, words):
        if "=" in word and not Path(word).exists():
            overrides.append(word)
        else:
            files.append(Path(word))
    return files, overrides


def _read(file: Path) -> dict[str, object]:
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=StrictLoader)  # noqa: S506 - a safe one
    except OSError as error:
        raise ConfigError(f"The config {file} cannot be read ({error.strerror}).", hint="Check --config.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"The config {file} is not valid YAML: {' '.join(str(error).split())}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"The config {file} must be a mapping, not a {type(content).__name__}.",
            hint="Write sections such as `train:` with keys under them.",
        )
    return {str(key): value for key, value in content.items()}


def _parsed(override: str) -> dict[str, object]:
    """`train.steps=5` as `{"train": {"steps": 5}}`; the value is read as YAML."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise ConfigError(f"{override!r} is not an override.", hint="Write key.path=value, such as train.steps=100.")
    try:
        value: object = yaml.load(text, Loader=StrictLoader)  # noqa: S506 - a safe one
    except yaml.YAMLError as error:
        raise ConfigError(f"The value of {name} is not valid YAML: {text!r}.") from error
    *outer, key = name.split(".")
    if len(outer) > MAX_DEPTH:
        raise ConfigError(f"{name[:40]}… names a key more than {MAX_DEPTH} levels deep.")
    content = {key: value}
    for key in reversed(outer):
        content = {key: content}
    return content


def _merged(base: dict[str, object], over: dict[str, object]) -> dict[str, object]:
    merged = dict(base)
    for key, value in over.items():
        earlier = merged.get(key)
        merged[key] = _merged(earlier, value) if isinstance(earlier, dict) and isinstance(value, dict) else value
    return merged

"""Config files, merged in order."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from holdfast.errors import ConfigError

__all__ = ["ConfigSource", "merged", "override", "read_config_file"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigSource:
    """Where settings came from, so that an error can name it."""

    name: str
    """A file, or the words on the command line."""
    values: dict[str, Any]


def read_config_file(path: Path) -> ConfigSource:
    """Read one YAML (or JSON) file.

    Raises:
        ConfigError: it is missing, is no YAML, has a key twice, or holds something else than a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeysLoader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise ConfigError(f"The config {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"The config {path} is not UTF-8 text.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"The config {path} is not valid YAML: {_in_one_line(error)}.") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"The config {path} must be a mapping, found {_kind(content)}.",
            hint="Begin it with a section, such as `train:`.",
        )
    return ConfigSource(name=str(path), values=content)


def override(setting: str) -> ConfigSource:
    """`train.steps=20` as a source; the value is read as YAML.

    Raises:
        ConfigError: it is not of the form key.path=value.
    """
    name, equals, value = setting.partition("=")
    keys = name.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"{setting!r} is no setting.", hint="Write it as key.path=value, such as train.steps=20.")
    try:
        values: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"The value in {setting!r} is not valid YAML: {_in_one_line(error)}.") from error
    for key in reversed(keys):
        values = {key: values}
    return ConfigSource(name="command line", values=values)


def merged(sources: Sequence[ConfigSource]) -> dict[str, Any]:
    """One mapping: sections are merged key by key, anything else is replaced; later sources win."""
    whole: dict[str, Any] = {}
    for source in sources:
        _merge_into(whole, source.values)
    return whole


def _merge_into(target: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge_into(target[key], value)
        else:
            target[key] = copy.deepcopy(value)


class _UniqueKeysLoader(yaml.SafeLoader):
    """YAML without its silent habit of letting the last of two equal keys win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} stands there twice", key_node.start_mark
                )
            if isinstance(key_node, yaml.ScalarNode):
                seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


def _in_one_line(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    return f"line {error.problem_mark.line + 1}: {error.problem}"


def _kind(content: object) -> str:
    if content is None:
        return "nothing"
    return {"list": "a list", "str": "a text"}.get(type(content).__name__, f"a {type(content).__name__}")

"""What is wrong with a config, in its user's words."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from holdfast.distillation.config_files import ConfigSource
from holdfast.errors import ConfigError

__all__ = ["described"]

_MOST_NAMED = 3


def described(error: ValidationError, schema: type[BaseModel], sources: Sequence[ConfigSource]) -> ConfigError:
    """One error that names each key by its full path, where it was set, and what to write instead."""
    details = error.errors()
    sentences = [_sentence(each, sources) for each in details[:_MOST_NAMED]]
    if len(details) > _MOST_NAMED:
        sentences.append(f"And {len(details) - _MOST_NAMED} more.")
    unknown = [each for each in details if each["type"] == "extra_forbidden"]
    return ConfigError(" ".join(sentences), hint=_suggestion(_path(unknown[0]), schema) if unknown else "")


def _sentence(detail: ErrorDetails, sources: Sequence[ConfigSource]) -> str:
    path = _path(detail)
    place = _place(path, sources)
    if detail["type"] == "extra_forbidden":
        return f"Unknown config key {path}{place}."
    if detail["type"] == "value_error":
        # Our own words, from a validator; they name their keys themselves where the whole config is meant.
        reason = str(detail["ctx"]["error"])
        return f"{path}: {reason}{place}." if path else f"{reason}{place}."
    reason = detail["msg"].removeprefix("Input ")
    return f"{path} {reason}, got {detail['input']!r}{place}."


def _path(detail: ErrorDetails) -> str:
    return ".".join(str(part) for part in detail["loc"])


def _place(path: str, sources: Sequence[ConfigSource]) -> str:
    """The last source that sets a key: it is the one that counted."""
    for source in reversed(sources):
        if path in set(_paths_in(source.values)):
            return f" ({source.name})"
    return ""


def _suggestion(path: str, schema: type[BaseModel]) -> str:
    section, _, key = path.rpartition(".")
    known = list(_paths_of(schema))
    beside = {known_path.rpartition(".")[2]: known_path for known_path in known if _section(known_path) == section}
    anywhere = {known_path.rpartition(".")[2]: known_path for known_path in known}
    for candidates in (beside, anywhere):
        if nearest := difflib.get_close_matches(key, candidates, n=1):
            return f"Did you mean {candidates[nearest[0]]}?"
    return f"Known keys {'of ' + section if section else 'at the top'}: {', '.join(sorted(beside))}."


def _section(path: str) -> str:
    return path.rpartition(".")[0]


def _paths_of(schema: type[BaseModel], start: str = "") -> Iterator[str]:
    for name, field in schema.model_fields.items():
        path = f"{start}{name}"
        yield path
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _paths_of(field.annotation, f"{path}.")


def _paths_in(values: Mapping[Any, Any], start: str = "") -> Iterator[str]:
    for key, value in values.items():
        path = f"{start}{key}"
        yield path
        if isinstance(value, Mapping):
            yield from _paths_in(value, f"{path}.")

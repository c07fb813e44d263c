"""Validation of config sections."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, ValidationError

from crashproof.errors import ConfigError

__all__ = ["Section", "validated"]

SectionT = TypeVar("SectionT", bound="Section")


class Section(BaseModel):
    """A frozen part of a config; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


def validated(kind: type[SectionT], content: Mapping[str, object]) -> SectionT:
    """Validate a complete config.

    Raises:
        ConfigError: A key is unknown (suggests the nearest known one) or a value is invalid; names each.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError(_message(kind, error), hint="See configs/ for examples.") from error


def _message(kind: type[Section], error: ValidationError) -> str:
    sentences = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        if not problem["loc"]:
            # The message of a validator over several keys names them.
            sentences.append(str(problem["ctx"]["error"]))
        elif problem["type"] == "extra_forbidden":
            sentences.append(f"Unknown config key {name}{_nearest(kind, problem['loc'])}")
        else:
            sentences.append(f"Config key {name}: {problem['msg']}, got {problem['input']!r}")
    return ". ".join(sentences) + "."


def _nearest(kind: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """A suggestion for an unknown key, such as ` (did you mean train.steps?)`."""
    known: dict[str, type[BaseModel] | None] = _fields(kind)
    for part in location[:-1]:
        inner = known.get(str(part))
        if inner is None:
            return ""
        known = _fields(inner)
    close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    if not close:
        return f" (known here: {', '.join(sorted(known))})"
    return f" (did you mean {'.'.join([*map(str, location[:-1]), close[0]])}?)"


def _fields(kind: type[BaseModel]) -> dict[str, type[BaseModel] | None]:
    known: dict[str, type[BaseModel] | None] = {}
    for name, field in kind.model_fields.items():
        section: type[BaseModel] | None = None
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            section = field.annotation
        aliases = field.validation_alias.choices if isinstance(field.validation_alias, AliasChoices) else [name]
        known |= dict.fromkeys(map(str, aliases), section)
    return known

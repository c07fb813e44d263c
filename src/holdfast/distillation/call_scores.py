"""How close a generated call comes to the right one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema
from referencing.jsonschema import EMPTY_REGISTRY

__all__ = ["CallScore", "SaidCall", "read_call", "score_call"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SaidCall:
    """A call that a model has written."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallScore:
    """One call against the right one."""

    is_valid: bool
    """It is JSON, names an offered tool, and fits that tool's schema."""
    has_right_tool: bool
    is_exact: bool
    """The right tool with equal arguments, in any order."""
    num_right_fields: int
    """Leaves of the arguments that are in both, path and value."""
    num_fields: int
    """Leaves of both, added up: twice the right ones over these is the F1."""


def read_call(text: str) -> SaidCall | None:
    """The first JSON object in a text that has a name and arguments; None where there is none.

    Models write `{"name": …, "arguments": {…}}`, some `parameters` instead; what stands around it does not matter.
    """
    for value in _objects_in(text):
        arguments = value.get("arguments", value.get("parameters"))
        if isinstance(value.get("name"), str) and isinstance(arguments, dict):
            return SaidCall(name=value["name"], arguments=arguments)
    return None


def score_call(
    said: SaidCall | None, *, name: str, arguments: Mapping[str, Any], schemas: Mapping[str, Mapping[str, Any]]
) -> CallScore:
    """Hold a call against the right one.

    Args:
        said: None where no call could be read.
        name: The right tool.
        arguments: The right arguments.
        schemas: What each offered tool takes.
    """
    wanted = Counter(_leaves(arguments, ""))
    if said is None:
        return CallScore(
            is_valid=False, has_right_tool=False, is_exact=False, num_right_fields=0, num_fields=wanted.total()
        )
    found = Counter(_leaves(said.arguments, ""))
    has_right_tool = said.name == name
    return CallScore(
        is_valid=_fits(said, schemas),
        has_right_tool=has_right_tool,
        is_exact=has_right_tool and found == wanted,
        # Fields of another tool are not the same fields.
        num_right_fields=(found & wanted).total() if has_right_tool else 0,
        num_fields=found.total() + wanted.total(),
    )


def _objects_in(text: str) -> Iterator[dict[str, Any]]:
    decoder = json.JSONDecoder()
    place = text.find("{")
    while place >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except (json.JSONDecodeError, RecursionError):
            place = text.find("{", place + 1)
            continue
        if isinstance(value, dict):
            yield value
        place = text.find("{", end)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Each value that holds no other, with the path to it; 1 and 1.0 are one value, true is not 1."""
    if isinstance(value, Mapping) and value:
        for name, child in value.items():
            yield from _leaves(child, f"{path}.{name}")
    elif isinstance(value, list) and value:
        for place, child in enumerate(value):
            yield from _leaves(child, f"{path}[{place}]")
    else:
        is_whole = isinstance(value, float) and value.is_integer()
        yield path, json.dumps(int(value) if is_whole else value, sort_keys=True)


def _fits(said: SaidCall, schemas: Mapping[str, Mapping[str, Any]]) -> bool:
    schema = schemas.get(said.name)
    if schema is None:
        return False
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    return bool(kind(schema, registry=EMPTY_REGISTRY).is_valid(said.arguments))

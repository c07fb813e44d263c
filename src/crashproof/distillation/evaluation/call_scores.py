"""Score a generated tool call against the expected one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema
from referencing.jsonschema import EMPTY_REGISTRY

__all__ = ["CallScore", "GeneratedCall", "read_call", "score_call"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedCall:
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


def read_call(text: str, offered: Iterable[str] = ()) -> GeneratedCall | None:
    """The first call in a text, or None.

    Models write `{"name": …, "arguments": {…}}`, some with `parameters` instead, or with the arguments as a JSON
    string; text around it is ignored. Some write an offered name and then an object, with marks between them.
    """
    names = list(offered)
    bare: GeneratedCall | None = None
    for start, value in _objects_in(text):
        arguments = _object(value.get("arguments", value.get("parameters")))
        name = value.get("name")
        if isinstance(name, str) and arguments is not None:
            return GeneratedCall(name=name, arguments=arguments)
        # Only after the last quote: before it, the name and the object may be parts of a call that was cut off.
        before = text[:start].rpartition('"')[2]
        found = [(before.rfind(name) + len(name), len(name), name) for name in names if name in before]
        if bare is None and found:
            bare = GeneratedCall(name=max(found)[2], arguments=value)
    return bare


def score_call(
    call: GeneratedCall | None,
    *,
    name: str,
    arguments: Mapping[str, object],
    schemas: Mapping[str, Mapping[str, object]],
) -> CallScore:
    """Compare a call with the right one.

    Args:
        call: None if the text holds no call.
        name: The right tool.
        arguments: The right arguments.
        schemas: The JSON Schema of each offered tool's arguments.
    """
    wanted = Counter(_leaves(arguments, ""))
    if call is None:
        return CallScore(
            is_valid=False, has_right_tool=False, is_exact=False, num_right_fields=0, num_fields=wanted.total()
        )
    found = Counter(_leaves(call.arguments, ""))
    has_right_tool = call.name == name
    return CallScore(
        is_valid=_fits(call, schemas),
        has_right_tool=has_right_tool,
        is_exact=has_right_tool and found == wanted,
        # Fields of another tool are not the same fields.
        num_right_fields=(found & wanted).total() if has_right_tool else 0,
        num_fields=found.total() + wanted.total(),
    )


def _objects_in(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each JSON object in a text, with where it begins."""
    decoder = json.JSONDecoder()
    place = text.find("{")
    while place >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except (json.JSONDecodeError, RecursionError):
            place = text.find("{", place + 1)
            continue
        if isinstance(value, dict):
            yield place, value
        place = text.find("{", end)


def _object(value: object) -> dict[str, Any] | None:
    """A JSON object, given as such or as text; None otherwise."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _leaves(value: object, path: str) -> Iterator[tuple[str, str]]:
    """Each leaf value with its path; 1 and 1.0 are equal, true and 1 are not."""
    if isinstance(value, Mapping) and value:
        for name, child in value.items():
            yield from _leaves(child, f"{path}.{name}")
    elif isinstance(value, list) and value:
        for place, child in enumerate(value):
            yield from _leaves(child, f"{path}[{place}]")
    else:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        yield path, json.dumps(value, sort_keys=True)


def _fits(call: GeneratedCall, schemas: Mapping[str, Mapping[str, object]]) -> bool:
    schema = schemas.get(call.name)
    if schema is None:
        return False
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    return bool(kind(schema, registry=EMPTY_REGISTRY).is_valid(call.arguments))

"""How close a generated call comes to the right one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
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


def read_call(text: str, offered: Iterable[str] = ()) -> SaidCall | None:
    """The first call in a text; None where there is none.

    Models write `{"name": …, "arguments": {…}}`, some `parameters` instead, or the arguments as a JSON string; what
    stands around it does not matter. Some write an offered name and an object behind it, with marks between them.
    """
    names = list(offered)
    bare: SaidCall | None = None
    for start, value in _objects_in(text):
        arguments = _object(value.get("arguments", value.get("parameters")))
        if isinstance(value.get("name"), str) and arguments is not None:
            return SaidCall(name=value["name"], arguments=arguments)
        # No quotes between them: it is not the inner part of a call that was cut off.
        before = text[:start].rpartition('"')[2]
        found = [(before.rfind(name) + len(name), len(name), name) for name in names if name in before]
        if bare is None and found:
            bare = SaidCall(name=max(found)[2], arguments=value)
    return bare


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


def _objects_in(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Where each JSON object begins, and the object."""
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


def _object(value: Any) -> dict[str, Any] | None:
    """An object, or the one that a text holds."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


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

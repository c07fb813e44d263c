"""Calls of tools in messages."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from crashproof.samples.problems import InvalidSample, problem_with_text

__all__ = ["CHAT_HINT", "calls_misplaced", "parse_arguments", "read_calls", "read_function_calls"]

CHAT_HINT = (
    'In a chat each message needs a "role" and a "content" that is text or parts of text. A call is {"type": '
    '"function", "function": {"name": …, "arguments": "{…}"}}, its arguments JSON in a string, or an object.'
)


def calls_misplaced(number: int) -> str:
    """What is wrong with calls that are no list, or not the assistant's."""
    return f'"tool_calls" of message {number} must be a list in a message of the assistant'


def read_calls(calls: object, number: int) -> list[dict[str, Any]]:
    """The calls of message `number`, their arguments as objects.

    Raises:
        InvalidSample: A call is malformed.
    """
    if not isinstance(calls, list):
        raise InvalidSample(calls_misplaced(number), CHAT_HINT)
    return [_read_call(call, number) for call in calls]


def read_function_calls(text: object, number: int) -> list[dict[str, Any]]:
    """The calls that a ShareGPT message of a function call contains as JSON: one, or a list.

    Raises:
        InvalidSample: It contains something else.
    """
    try:
        value = _decode(text) if isinstance(text, str) else text
    except (ValueError, RecursionError) as error:
        raise InvalidSample(f"the function call of message {number} is no JSON ({error})", CHAT_HINT) from error
    return read_calls(value if isinstance(value, list) else [value], number)


def parse_arguments(name: str, value: object) -> dict[str, Any]:
    """The arguments of a call: an object, or JSON in a string, perhaps encoded twice; no text is no arguments.

    Raises:
        InvalidSample: They are something else.
    """
    if not isinstance(value, str | dict):
        raise InvalidSample(f"the arguments of {name} are not text", CHAT_HINT)
    parsed: Any = value
    for _ in range(2):
        if isinstance(parsed, str):
            parsed = _parse(name, parsed)
    if not isinstance(parsed, dict):
        raise InvalidSample(f"the arguments of {name} are not a JSON object, but {str(value)[:40]}", CHAT_HINT)
    # Escapes in JSON let halves of characters pass, which no tokenizer takes.
    if problem := problem_with_text(json.dumps(parsed, ensure_ascii=False)):
        raise InvalidSample(f"the arguments of {name} are no text: {problem}", CHAT_HINT)
    return parsed


def _parse(name: str, text: str) -> Any:
    if not text.strip():
        return {}
    try:
        return _decode(text)
    except (ValueError, RecursionError) as error:
        raise InvalidSample(f"the arguments of {name} are not valid JSON ({error})", CHAT_HINT) from error


def _decode(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")


def _read_call(call: object, number: int) -> dict[str, Any]:
    """A call, also one without its wrapping: `{"name", "arguments"}`, or `{"name", "input"}` as Anthropic has it."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidSample(f"a tool call in message {number} names no function", CHAT_HINT)
    name = function["name"]
    given = next((function[key] for key in ("arguments", "input", "parameters") if key in function), None)
    kept = {key: call[key] for key in ("id", "index") if call.get(key) is not None}
    return kept | {"type": "function", "function": {"name": name, "arguments": parse_arguments(name, given)}}

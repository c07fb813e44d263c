"""Chat messages with tool calls, checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from crashproof.distillation.text.tokenizer import problem_with_text
from crashproof.errors import DataError

__all__ = ["InvalidSample", "Message", "check_message", "parse_arguments"]

Message = dict[str, Any]
"""As OpenAI's chat API takes it; the arguments of its calls are an object, as chat templates take them."""

_CALL = 'A call is {"type": "function", "function": {"name": …, "arguments": "{…}"}}, its arguments JSON in a string.'


class InvalidSample(Exception):
    """A sample that cannot be used, and what to do about it."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint

    def at(self, path: Path, line: int) -> DataError:
        """The error that names the line."""
        return DataError(path, self.reason, line=line, hint=self.hint)


def check_message(message: object, number: int, *, read_arguments: Callable[[str, object], Message]) -> Message:
    """Check one message and parse the arguments of its calls.

    Args:
        message: One of `messages`.
        number: Its position among them, from 1.
        read_arguments: Takes a function's name and arguments, returns them as an object.

    Raises:
        InvalidSample: The message is malformed.
    """
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise InvalidSample(f'message {number} needs a "role"', _CALL)
    content, calls = message.get("content"), message.get("tool_calls")
    if not calls:
        if not isinstance(content, str):
            raise InvalidSample(f'the "content" of message {number} ({message["role"]}) must be text', _CALL)
        return {key: value for key, value in message.items() if key != "tool_calls"}
    if message["role"] != "assistant" or not isinstance(calls, list):
        raise InvalidSample(f'"tool_calls" of message {number} must be a list in a message of the assistant', _CALL)
    if not isinstance(content, str | None):
        raise InvalidSample(f'the "content" beside the "tool_calls" of message {number} must be null or text', _CALL)
    return message | {"content": content, "tool_calls": [_check_call(call, number, read_arguments) for call in calls]}


def parse_arguments(name: str, text: object) -> Message:
    """The arguments of a call, as the API writes them: a JSON object in a string.

    Raises:
        InvalidSample: They are something else.
    """
    if not isinstance(text, str):
        raise InvalidSample(f"the arguments of {name} are not text", _CALL)
    try:
        arguments = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidSample(f"the arguments of {name} are not valid JSON ({error})", _CALL) from error
    if problem := problem_with_text(json.dumps(arguments, ensure_ascii=False)):
        raise InvalidSample(f"the arguments of {name} are no text: {problem}", _CALL)
    if not isinstance(arguments, dict):
        raise InvalidSample(f"the arguments of {name} are not a JSON object, but {text[:40]}", _CALL)
    return arguments


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")


def _check_call(call: object, number: int, read_arguments: Callable[[str, object], Message]) -> Message:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidSample(f"a tool call in message {number} names no function", _CALL)
    name = function["name"]
    return call | {"function": {"name": name, "arguments": read_arguments(name, function.get("arguments"))}}

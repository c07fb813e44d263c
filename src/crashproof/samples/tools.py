"""Definitions of tools."""

from __future__ import annotations

from typing import Any

import msgspec

from crashproof.samples.problems import InvalidSample

__all__ = ["Tools", "parse_json_text", "read_tools"]

Tools = list[dict[str, Any]]
"""`{"type": "function", "function": {"name", "description", "parameters"}}`, as OpenAI's chat API takes them."""

_HINT = 'A tool is {"type": "function", "function": {"name": …, "parameters": …}}, as OpenAI\'s chat API takes it.'
_MALFORMED = 'a tool must be {"type": "function", "function": {"name": …}}, its name without spaces'
_FIELDS = ("name", "description", "parameters", "strict")


def read_tools(value: object) -> Tools | None:
    """The tools that a line offers; None without any.

    They may be JSON in a string, functions without their wrapping, or in the form of Anthropic's API.

    Raises:
        InvalidSample: They are something else.
    """
    value = parse_json_text(value)
    if value is None or value in ("", []):
        return None
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise InvalidSample('"tools" must be a list', _HINT)
    return [_read_tool(parse_json_text(tool)) for tool in value]


def parse_json_text(value: object) -> Any:
    """What a text that contains a JSON list or object stands for; any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return value


def _read_tool(tool: object) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise InvalidSample(_MALFORMED, _HINT)
    function = tool.get("function")
    if isinstance(function, dict) and tool.get("type", "function") == "function":
        return {"type": "function"} | tool | {"function": _with_parsed_parameters(function)}
    if not isinstance(tool.get("name"), str) or tool.get("type", "function") not in ("function", "custom"):
        raise InvalidSample(_MALFORMED, _HINT)
    bare = {name: tool[name] for name in _FIELDS if name in tool}
    if "input_schema" in tool:
        bare["parameters"] = tool["input_schema"]
    return {"type": "function", "function": _with_parsed_parameters(bare)}


def _with_parsed_parameters(function: dict[str, Any]) -> dict[str, Any]:
    parameters = function.get("parameters")
    parsed = parse_json_text(parameters)
    return function if parsed is parameters else function | {"parameters": parsed}

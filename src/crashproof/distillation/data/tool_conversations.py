"""Conversations with tools, checked."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import referencing.exceptions
from referencing.jsonschema import EMPTY_REGISTRY

from crashproof.distillation.data.answered.cut_answers import is_cut_off
from crashproof.distillation.data.source import Source, place_of, rules_of
from crashproof.distillation.settings.data import DataConfig
from crashproof.distillation.text.chat import render_builtin
from crashproof.distillation.text.json_grammar import problem_with_schema
from crashproof.samples.messages import Message, read_messages
from crashproof.samples.problems import InvalidSample, LeftOut
from crashproof.samples.rules import SampleRules
from crashproof.samples.sample import require_learned
from crashproof.samples.tools import Tools, read_tools

__all__ = ["Call", "Conversation", "ToolSource", "check_conversation", "read_conversation", "read_source"]

_FORMAT = (
    'A line is {"messages": […], "tools": [{"type": "function", "function": {"name": …, "parameters": …}}]}, '
    "as OpenAI's chat API takes them."
)
_AS_READ = SampleRules(learns_reasoning=True, learns_refusals=True)
"""For what was read before: nothing more is taken away."""
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
_DECIDES_THE_TYPE = frozenset({"type", "$ref", "allOf", "anyOf", "oneOf", "const", "enum"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a tool."""

    name: str
    arguments: dict[str, Any]
    """In the order of the tool's schema: JSON objects have no order, and a grammar engine generates this one."""
    schema: str
    """The JSON Schema of the arguments, as JSON."""
    message: int
    """Index of its message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """One line, checked."""

    messages: list[Message]
    tools: Tools
    calls: list[Call]
    restated: list[tuple[int, int]] | None
    """Characters of the last answer that restate a tool's result, if the line has `integration_spans`."""
    unlearned: frozenset[int] = frozenset()
    """Indices of the assistant's messages that are context only."""
    is_cut: bool = False
    """Whether the last turn, by the line's `finish_reason`, is not complete: it has no end to learn."""

    def offered(self) -> list[str]:
        """The names of all tools that can be called."""
        return [tool["function"]["name"] for tool in self.tools]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSource(Source):
    """Lines of chat with tools, as they are in the file; `read_conversation` checks one."""

    def conversations(self) -> Iterator[tuple[int, Conversation]]:
        """The number and the conversation of each line."""
        for sample in self.samples:
            yield sample["line"], read_conversation(sample, self.where)

    def documents(self) -> list[str]:
        """All text as the built-in template renders it, for training a tokenizer."""
        return [render_builtin(each.messages, each.tools) for _, each in self.conversations()]


def read_source(paths: Path | list[Path], config: DataConfig | None = None, *, has_one_call: bool) -> ToolSource:
    """Read files and check every line.

    Args:
        paths: Files or folders.
        config: `data`.
        has_one_call: Learn only lines with exactly one call; otherwise with at least one.

    Raises:
        DataError: Names the file, the line and the problem.
    """
    config = config or DataConfig()
    check = partial(_require_calls, has_one_call=has_one_call)
    return ToolSource.read(paths, check=check, rules=rules_of(config), split=config.split)


def _require_calls(sample: dict[str, Any], *, has_one_call: bool) -> None:
    """Raises `InvalidSample` or `LeftOut` if a sample has no call to learn."""
    if "messages" not in sample:
        raise InvalidSample('"messages" must be a non-empty list', _FORMAT)
    answers = [place for place, message in enumerate(sample["messages"]) if message["role"] == "assistant"]
    if not any(message.get("tool_calls") for message in sample["messages"]):
        # Without tools there may well be no call: that is no mistake in the line.
        _require_number(0, has_one_call=has_one_call)
    calls = check_conversation(sample).calls
    _require_number(len(calls), has_one_call=has_one_call)
    require_learned(sample, [calls[-1].message] if has_one_call else answers)


def _require_number(num_calls: int, *, has_one_call: bool) -> None:
    if num_calls == 0 or (has_one_call and num_calls > 1):
        wanted = "exactly one tool call" if has_one_call else "at least one tool call"
        raise LeftOut(f"it must have {wanted}, and has {num_calls}", "It teaches nothing to this recipe.")


def read_conversation(sample: dict[str, Any], where: Path) -> Conversation:
    """Check one line and prepare it for a chat template.

    Raises:
        DataError: Names the line and the problem.
    """
    try:
        return check_conversation(sample)
    except InvalidSample as error:
        raise error.at(place_of(sample, where)) from error


def check_conversation(sample: dict[str, Any]) -> Conversation:
    """Check one line and prepare it for a chat template.

    Raises:
        InvalidSample: Says what is wrong with it.
    """
    tools = read_tools(sample.get("tools"))
    schemas = _schemas(tools)
    assert tools is not None
    given = sample.get("messages")
    if not isinstance(given, list) or not given:
        raise InvalidSample('"messages" must be a non-empty list', _FORMAT)
    read = read_messages(given, _AS_READ)
    messages: list[Message] = []
    calls: list[Call] = []
    open_ids: deque[object] = deque()
    for place, each in enumerate(read.messages):
        message = _with_checked_calls(each, schemas)
        messages.append(message)
        for call in message.get("tool_calls", ()):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            calls.append(Call(name=name, arguments=arguments, schema=json.dumps(schemas[name]), message=place))
            open_ids.append(call.get("id"))
        if message["role"] == "tool":
            _close_call(message, open_ids)
    restated = _restated_spans(sample.get("integration_spans"), messages)
    unlearned = frozenset(sample.get("unlearned", ())) | frozenset(read.unlearned)
    return Conversation(
        messages=messages,
        tools=tools,
        calls=calls,
        restated=restated,
        unlearned=unlearned,
        is_cut=is_cut_off(sample) and len(messages) - 1 not in unlearned,
    )


def _with_checked_calls(message: Message, schemas: dict[str, dict[str, Any]]) -> Message:
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call["function"]
        arguments = _checked_arguments(schemas, function["name"], function["arguments"])
        calls.append(call | {"function": function | {"arguments": arguments}})
    return message | {"tool_calls": calls}


def _schemas(tools: object) -> dict[str, dict[str, Any]]:
    """The schema of the arguments of each tool."""
    if not isinstance(tools, list) or not tools:
        raise InvalidSample('"tools" must be a non-empty list', _FORMAT)
    schemas: dict[str, dict[str, Any]] = {}
    for tool in tools:
        name, schema = _schema(tool)
        if name in schemas:
            raise InvalidSample(f"two tools are named {name}", "Give each tool a name of its own.")
        problem = problem_with_schema(json.dumps(schema))
        if problem:
            raise InvalidSample(
                f"the schema of {name} cannot be compiled: {problem}",
                "Use only keywords that llguidance supports, or leave that part out of the schema.",
            )
        schemas[name] = schema
    return schemas


def _schema(tool: object) -> tuple[str, dict[str, Any]]:
    """The name of a tool and the schema of its arguments, which is always one of an object."""
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name or any(each in '"\\' or each.isspace() for each in name):
        raise InvalidSample(
            'a tool must be {"type": "function", "function": {"name": …}}, its name without spaces', _FORMAT
        )
    assert isinstance(function, dict)
    schema = function.get("parameters")
    if schema is None:
        return name, _NO_PARAMETERS
    if not isinstance(schema, dict):
        raise InvalidSample(f'the "parameters" of {name} must be a JSON Schema, which is an object', _FORMAT)
    return name, schema if _DECIDES_THE_TYPE & schema.keys() else {"type": "object"} | schema


def _checked_arguments(schemas: dict[str, dict[str, Any]], name: str, given: Message) -> Message:
    """The arguments of a call, checked against the schema of its tool."""
    if name not in schemas:
        raise InvalidSample(
            f"it calls {name}, which is not offered",
            f'Offered are {", ".join(schemas)}; add the tool to "tools", or correct the call.',
        )
    schema = schemas[name]
    arguments: Message = _in_order(given, schema, schema)
    violation = _violation(arguments, schema)
    if violation:
        raise InvalidSample(
            f"the arguments of {name} violate its schema, {violation}", "Correct the call or the schema."
        )
    return arguments


def _in_order(value: Any, schema: object, root: dict[str, Any]) -> Any:
    """The value with its objects in the order of the schema; properties that it does not name come last."""
    schema = _resolved(schema, root)
    if isinstance(value, list):
        return [_in_order(each, schema.get("items"), root) for each in value]
    if not isinstance(value, dict):
        return value
    properties = schema.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    names = [name for name in properties if name in value]
    names += [name for name in value if name not in properties]
    return {name: _in_order(value[name], properties.get(name), root) for name in names}


def _resolved(schema: object, root: dict[str, Any]) -> dict[str, Any]:
    """A schema after following its references within the document."""
    seen: set[str] = set()
    while isinstance(schema, dict) and isinstance(pointer := schema.get("$ref"), str) and pointer not in seen:
        seen.add(pointer)
        schema = root
        for part in pointer.removeprefix("#").split("/")[1:]:
            schema = schema.get(part) if isinstance(schema, dict) else None
    return schema if isinstance(schema, dict) else {}


def _violation(arguments: Message, schema: dict[str, Any]) -> str | None:
    try:
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        # Remote references are not fetched: checking data needs no network.
        error = jsonschema.exceptions.best_match(kind(schema, registry=EMPTY_REGISTRY).iter_errors(arguments))
    except referencing.exceptions.Unresolvable as unresolvable:
        raise InvalidSample(f"a schema has a reference that is not in it ({unresolvable})", _FORMAT) from unresolvable
    return None if error is None else f"at {error.json_path}: {error.message[:200]}"


def _close_call(result: Message, open_ids: deque[object]) -> None:
    """Match a result with the call that it names, or with the oldest open one."""
    named = result.get("tool_call_id")
    if named is None and open_ids:
        open_ids.popleft()
    elif named in open_ids and named is not None:
        open_ids.remove(named)
    else:
        of = "" if named is None else f" ({named})"
        raise InvalidSample(
            f"a tool's result{of} belongs to no call before it",
            'Give the call and its result the same id: "id" there, "tool_call_id" here.',
        )


def _restated_spans(spans: object, messages: list[Message]) -> list[tuple[int, int]] | None:
    if spans is None:
        return None
    answer = messages[-1]["content"] if messages[-1]["role"] == "assistant" else None
    hint = 'Write [[start, end], …], characters of the last message\'s "content".'
    if answer is None or not isinstance(spans, list):
        raise InvalidSample('"integration_spans" must be a list, and the last message an answer', hint)
    for span in spans:
        is_pair = isinstance(span, list) and len(span) == 2 and all(type(each) is int for each in span)
        if not is_pair or not 0 <= span[0] < span[1] <= len(answer):
            raise InvalidSample(f"the integration span {span} is outside an answer of {len(answer)} characters", hint)
    return [(start, end) for start, end in spans]

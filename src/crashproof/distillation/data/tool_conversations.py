"""Lines of chat with tools, checked."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jsonschema
import referencing.exceptions
from referencing.jsonschema import EMPTY_REGISTRY

from crashproof.distillation.data.text_data import Source
from crashproof.distillation.text.chat import Tools, render_builtin
from crashproof.distillation.text.json_grammar import problem_with_schema
from crashproof.errors import DataError
from crashproof.json_lines import read_objects

__all__ = ["Call", "Conversation", "ToolSource", "read_conversation", "read_source"]

GENERATED = Path("the generated task")
_FORMAT = (
    'A line is {"messages": […], "tools": [{"type": "function", "function": {"name": …, "parameters": …}}]}, '
    "as OpenAI's chat API takes them."
)
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
_SAYS_MORE = frozenset({"type", "$ref", "allOf", "anyOf", "oneOf", "const", "enum"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a tool."""

    name: str
    arguments: dict[str, Any]
    """In the order of the tool's schema: JSON objects have none, and a grammar engine writes them in this one."""
    schema: str
    """What the arguments must be: JSON Schema, as JSON."""
    message: int
    """Its place among the messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """One line, checked, as chat templates take it."""

    messages: list[dict[str, Any]]
    """The arguments of each call are an object here."""
    tools: Tools
    calls: list[Call]
    restated: list[tuple[int, int]] | None
    """Characters of the last answer that restate a tool's result, where the line says so itself."""

    def offered(self) -> list[str]:
        """The names of all tools that can be called."""
        return [tool["function"]["name"] for tool in self.tools]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSource(Source):
    """Lines of chat with tools, as they stand in the file; `read_conversation` reads one."""

    @property
    def where(self) -> Path:
        """What errors name."""
        return self.path or GENERATED

    def conversations(self) -> Iterator[tuple[int, Conversation]]:
        """Each line's number, and what it holds."""
        for sample in self.samples:
            yield sample["line"], read_conversation(sample, self.where)

    def documents(self) -> list[str]:
        """All text as the built-in template writes it, for training a tokenizer."""
        return [render_builtin(each.messages, each.tools) for _, each in self.conversations()]


def read_source(path: Path, *, has_one_call: bool) -> ToolSource:
    """Read a file and check every line of it.

    Args:
        path: JSONL.
        has_one_call: Each line must have exactly one call; otherwise at least one.

    Raises:
        DataError: tells the file, the line and what is wrong with it.
    """
    samples = [sample | {"line": number} for number, sample in read_objects(path)]
    if not samples:
        raise DataError(path, "it holds no samples", hint="Put one JSON object on each line.")
    source = ToolSource(samples=samples, sha256=_digest(path), path=path)
    for number, conversation in source.conversations():
        num_calls = len(conversation.calls)
        if num_calls == 0 or (has_one_call and num_calls > 1):
            wanted = "exactly one tool call" if has_one_call else "at least one tool call"
            raise DataError(path, f"it must have {wanted}, and has {num_calls}", line=number, hint=_FORMAT)
    return source


def read_conversation(sample: dict[str, Any], where: Path) -> Conversation:
    """Check one line and make it ready for a chat template.

    Raises:
        DataError: tells the line and what is wrong with it.
    """
    try:
        return _conversation(sample)
    except _Unusable as error:
        raise DataError(where, error.reason, line=sample["line"], hint=error.hint) from error


class _Unusable(Exception):
    def __init__(self, reason: str, hint: str = _FORMAT) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _conversation(sample: dict[str, Any]) -> Conversation:
    schemas = _schemas(sample.get("tools"))
    messages = sample.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _Unusable('"messages" must be a list that is not empty')
    ready: list[dict[str, Any]] = []
    calls: list[Call] = []
    open_ids: deque[Any] = deque()
    for place, message in enumerate(messages):
        made, made_calls = _message(message, place, schemas)
        ready.append(made)
        calls += made_calls
        open_ids += [call.get("id") for call in made.get("tool_calls", ())]
        if made["role"] == "tool":
            _answer_call(made, open_ids)
    return Conversation(
        messages=ready, tools=sample["tools"], calls=calls, restated=_restated(sample.get("integration_spans"), ready)
    )


def _schemas(tools: Any) -> dict[str, dict[str, Any]]:
    """What each offered tool takes."""
    if not isinstance(tools, list) or not tools:
        raise _Unusable('"tools" must be a list that is not empty')
    schemas: dict[str, dict[str, Any]] = {}
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or not name or any(each in '"\\' or each.isspace() for each in name):
            raise _Unusable('a tool must be {"type": "function", "function": {"name": …}}, its name without spaces')
        assert isinstance(function, dict)
        if name in schemas:
            raise _Unusable(f"two tools are named {name}", "Each offered tool needs a name of its own.")
        schema = function.get("parameters")
        if schema is not None and not isinstance(schema, dict):
            raise _Unusable(f'the "parameters" of {name} must be a JSON Schema, which is an object')
        schemas[name] = _of_an_object(schema)
        problem = problem_with_schema(json.dumps(schemas[name]))
        if problem:
            raise _Unusable(
                f"the schema of {name} cannot be compiled: {problem}",
                "Say it with keywords that llguidance knows, or leave that part out of the schema.",
            )
    return schemas


def _of_an_object(schema: dict[str, Any] | None) -> dict[str, Any]:
    """Arguments are an object, whether a schema says so or not."""
    if not schema:
        return _NO_PARAMETERS if schema is None else {"type": "object"}
    return schema if _SAYS_MORE & schema.keys() else {"type": "object"} | schema


def _message(message: Any, place: int, schemas: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], list[Call]]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise _Unusable('each message needs a "role"')
    role, content, given = message["role"], message.get("content"), message.get("tool_calls")
    if given is None:
        if not isinstance(content, str):
            raise _Unusable(f'the "content" of message {place + 1} ({role}) must be text')
        return {key: value for key, value in message.items() if key != "tool_calls"}, []
    if role != "assistant" or not isinstance(given, list) or not given:
        raise _Unusable('"tool_calls" must be a list that is not empty, in a message of the assistant')
    if content is not None and not isinstance(content, str):
        raise _Unusable('the "content" beside "tool_calls" must be null or text')
    calls = [_call(call, place, schemas) for call in given]
    ready = [
        each | {"function": {"name": call.name, "arguments": call.arguments}}
        for each, call in zip(given, calls, strict=True)
    ]
    return message | {"content": content, "tool_calls": ready}, calls


def _call(call: Any, place: int, schemas: dict[str, dict[str, Any]]) -> Call:
    function = call.get("function") if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str):
        raise _Unusable('a tool call must be {"id": …, "type": "function", "function": {"name": …, "arguments": …}}')
    if name not in schemas:
        raise _Unusable(
            f"it calls {name}, which is not offered",
            f'Offered are {", ".join(schemas)}; add the tool to "tools", or correct the call.',
        )
    schema = schemas[name]
    arguments = _in_order(_arguments(function.get("arguments"), name), schema, schema)
    violation = _violation(arguments, schema)
    if violation:
        raise _Unusable(f"the arguments of {name} break its schema, {violation}", "Correct the call or the schema.")
    return Call(name=name, arguments=arguments, schema=json.dumps(schema), message=place)


def _arguments(text: Any, name: str) -> dict[str, Any]:
    hint = 'Write them as a JSON object in a string: "arguments": "{\\"city\\": \\"Rome\\"}".'
    if not isinstance(text, str):
        raise _Unusable(f"the arguments of {name} are no text", hint)
    try:
        arguments = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _Unusable(f"the arguments of {name} are no JSON ({error})", hint) from error
    if not isinstance(arguments, dict):
        raise _Unusable(f"the arguments of {name} are no JSON object, but {text[:40]}", hint)
    return arguments


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")


def _in_order(value: Any, schema: Any, root: dict[str, Any]) -> Any:
    """The same value, its objects in the order of the schema; what the schema does not name comes last."""
    schema = _pointed_at(schema, root)
    if isinstance(value, list):
        return [_in_order(each, schema.get("items"), root) for each in value]
    if not isinstance(value, dict):
        return value
    properties = schema.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    names = [name for name in properties if name in value]
    names += [name for name in value if name not in properties]
    return {name: _in_order(value[name], properties.get(name), root) for name in names}


def _pointed_at(schema: Any, root: dict[str, Any]) -> dict[str, Any]:
    """A schema, behind its references into the same document."""
    seen: set[str] = set()
    while isinstance(schema, dict) and isinstance(pointer := schema.get("$ref"), str) and pointer not in seen:
        seen.add(pointer)
        schema = root
        for part in pointer.removeprefix("#").split("/")[1:]:
            schema = schema.get(part) if isinstance(schema, dict) else None
    return schema if isinstance(schema, dict) else {}


def _violation(arguments: dict[str, Any], schema: dict[str, Any]) -> str | None:
    try:
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        # What lies elsewhere is not fetched: checking data asks nobody.
        error = jsonschema.exceptions.best_match(kind(schema, registry=EMPTY_REGISTRY).iter_errors(arguments))
    except referencing.exceptions.Unresolvable as unresolvable:
        raise _Unusable(f"a schema refers to what is not in it ({unresolvable})") from unresolvable
    return None if error is None else f"at {error.json_path}: {error.message[:200]}"


def _answer_call(message: dict[str, Any], open_ids: deque[Any]) -> None:
    """A result belongs to the call that it names, or to the oldest one that has none."""
    named = message.get("tool_call_id")
    if named is None and open_ids:
        open_ids.popleft()
    elif named in open_ids and named is not None:
        open_ids.remove(named)
    else:
        of = "" if named is None else f" ({named})"
        raise _Unusable(
            f"a tool's result{of} belongs to no call before it",
            'Give the call and its result the same id: "id" there, "tool_call_id" here.',
        )


def _restated(spans: Any, messages: list[dict[str, Any]]) -> list[tuple[int, int]] | None:
    if spans is None:
        return None
    answer = messages[-1]["content"] if messages[-1]["role"] == "assistant" else None
    hint = 'Write [[start, end], …], characters of the last message\'s "content".'
    if answer is None or not isinstance(spans, list):
        raise _Unusable('"integration_spans" must be a list, and the last message an answer', hint)
    for span in spans:
        is_pair = isinstance(span, list) and len(span) == 2 and all(type(each) is int for each in span)
        if not is_pair or not 0 <= span[0] < span[1] <= len(answer):
            raise _Unusable(f"the integration span {span} lies not in an answer of {len(answer)} characters", hint)
    return [(start, end) for start, end in spans]

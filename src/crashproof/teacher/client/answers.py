"""What a teacher's answer says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import jsonschema
import msgspec
import referencing.exceptions
from referencing.jsonschema import EMPTY_REGISTRY

from crashproof.records.requests import AnswerRecord
from crashproof.teacher.client.prices import Usage

__all__ = ["Answer", "Check", "answer_in", "problem_with"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One chat completion, paid for and kept."""

    key: str
    """It is kept under this."""
    message: dict[str, Any]
    """The assistant's, as it came: `content`, `tool_calls`, …"""
    finish_reason: str | None
    logprobs: list[dict[str, Any]] | None
    """By token, in OpenAI's form (`choices[0].logprobs.content`); None where none were asked for."""
    usage: Usage | None
    """None where the server's count contradicts itself."""
    cost: Decimal
    """US dollars, when it was paid."""
    response: dict[str, Any]
    """The whole body."""

    @property
    def text(self) -> str:
        """What it says; empty where it only calls tools."""
        return self.message.get("content") or ""


Check = Callable[[Answer], str | None]
"""A caller's own test of an answer: what is wrong with it, in words, or None."""


def answer_in(record: AnswerRecord) -> Answer:
    """The answer in a record: its first choice.

    Raises:
        ValueError: it holds none; the text says why.
    """
    choices = record.response.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError("it has no choices")
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise ValueError("its first choice has no message")
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        raise ValueError(f"its content is a {type(content).__name__}")
    if content is None and not message.get("tool_calls") and not message.get("refusal"):
        raise ValueError("it has neither content nor tool calls")
    logprobs = choices[0].get("logprobs")
    by_token = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    return Answer(
        key=record.prompt_hash,
        message=message,
        finish_reason=choices[0].get("finish_reason"),
        logprobs=by_token if isinstance(by_token, list) else None,
        usage=Usage.read(record.response),
        cost=record.cost,
        response=record.response,
    )


def problem_with(answer: Answer, body: Mapping[str, Any]) -> str | None:
    """What is wrong with an answer by the request's own words: its response format, its tools; None where nothing."""
    problem = _problem_with_format(answer, body.get("response_format"))
    if problem is not None:
        return problem
    schemas = {
        tool["function"].get("name"): tool["function"].get("parameters")
        for tool in body.get("tools") or []
        if isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping)
    }
    calls = answer.message.get("tool_calls") or []
    if not isinstance(calls, list):
        return f"its tool calls are a {type(calls).__name__}"
    for call in calls:
        problem = _problem_with_call(call, schemas)
        if problem is not None:
            return problem
    return None


def _problem_with_format(answer: Answer, wanted: Any) -> str | None:
    if not isinstance(wanted, Mapping) or wanted.get("type") not in ("json_object", "json_schema"):
        return None
    if not answer.text and (answer.message.get("tool_calls") or answer.message.get("refusal")):
        return None
    try:
        content = msgspec.json.decode(answer.text)
    except (msgspec.DecodeError, RecursionError) as error:
        return f"its content is no JSON ({error})"
    described = wanted.get("json_schema")
    schema = described.get("schema") if isinstance(described, Mapping) else None
    return _violation(content, schema, "its content")


def _problem_with_call(call: Any, schemas: Mapping[str, Any]) -> str | None:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return "a tool call has no function with arguments"
    name = function.get("name")
    if not isinstance(name, str) or name not in schemas:
        return f"it calls {name!r}, which was not offered"
    try:
        arguments = msgspec.json.decode(function["arguments"] or "{}")
    except (msgspec.DecodeError, RecursionError) as error:
        return f"the arguments of {name} are no JSON ({error})"
    return _violation(arguments, schemas[name], f"the arguments of {name}")


def _violation(content: Any, schema: Any, what: str) -> str | None:
    if not isinstance(schema, dict):
        return None
    try:
        validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        validator.check_schema(schema)
        # What lies elsewhere is not fetched: checking an answer asks nobody.
        errors = validator(schema, registry=EMPTY_REGISTRY).iter_errors(content)
        error = jsonschema.exceptions.best_match(errors)
    except (jsonschema.SchemaError, referencing.exceptions.Unresolvable, RecursionError):
        # The schema is the user's own, and the server took it: it says nothing about the answer.
        return None
    return None if error is None else f"{what}, at {error.json_path}: {error.message[:200]}"

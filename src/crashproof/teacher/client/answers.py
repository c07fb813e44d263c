"""Parse and check a teacher's answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import jsonschema
import msgspec
import referencing.exceptions
from msgspec import structs
from referencing.jsonschema import EMPTY_REGISTRY

from crashproof.answers.store import Answered
from crashproof.records.requests import AnswerRecord
from crashproof.rules.requests import JsonObject
from crashproof.samples.content import read_content
from crashproof.samples.problems import InvalidSample, LeftOut
from crashproof.teacher.client.logprobs import entries_of
from crashproof.teacher.replies.choices import first_choice
from crashproof.teacher.replies.endings import Ending, ending_of
from crashproof.teacher.replies.usage import Usage

__all__ = ["Answer", "Check", "answer_in", "finish_reason_of", "note_problem", "problem_with", "problem_with_ending"]

_LENGTH = "length"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One chat completion, paid for and stored."""

    key: str
    """The key under which it is stored."""
    message: JsonObject
    """The assistant's message as received: `content`, `tool_calls`, …"""
    finish_reason: str | None
    """As received; without one, `length` for an answer that has all the tokens it might have, else None."""
    logprobs: list[JsonObject] | None
    """By token, in OpenAI's form (`choices[0].logprobs.content`); None if not requested."""
    cost: Decimal
    """US dollars, at the price when it was paid."""
    response: JsonObject
    """The complete body."""

    @property
    def text(self) -> str:
        """The content; empty if it only calls tools."""
        return self.message.get("content") or ""

    @property
    def usage(self) -> Usage | None:
        """The tokens that the server reports; None if it reports none that can be read."""
        return Usage.read(self.response)

    @property
    def ending(self) -> Ending:
        """What its finish reason means."""
        return ending_of(self.finish_reason)


Check = Callable[[Answer], str | None]
"""A caller's own check of an answer: returns what is wrong with it, or None."""


def answer_in(record: AnswerRecord) -> Answer:
    """Parse the first choice of a record.

    Raises:
        ValueError: it holds no answer; the message says why.
    """
    choices = record.response.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError("it has no choices")
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise ValueError("its first choice has no message")
    message = _with_content_as_text(message)
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        raise ValueError(f"its content is a {type(content).__name__}")
    finish_reason = finish_reason_of(record)
    if content is None and not message.get("tool_calls") and not message.get("refusal"):
        raise ValueError(f"it has neither content nor tool calls{_why_empty(message, finish_reason)}")
    return Answer(
        key=record.prompt_hash,
        message=message,
        finish_reason=finish_reason,
        logprobs=entries_of(choices[0].get("logprobs")),
        cost=record.cost,
        response=record.response,
    )


def _with_content_as_text(message: JsonObject) -> JsonObject:
    """A message with the text of its parts as its content, and the thoughts among them beside it."""
    parts = message.get("content")
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        return message
    try:
        content = read_content(parts, 1, "assistant")
    except (InvalidSample, LeftOut) as error:
        raise ValueError(str(error)) from error
    given = {"reasoning_content": content.thoughts, "refusal": content.refusal}
    return message | {"content": content.text} | {name: text for name, text in given.items() if text}


def finish_reason_of(record: AnswerRecord) -> str | None:
    """The finish reason of the first choice; see `Answer.finish_reason`."""
    reason = (first_choice(record.response) or {}).get("finish_reason")
    if reason is None or reason == "":
        return _length_or_none(Usage.read(record.response), _body_of(record))
    return reason if isinstance(reason, str) else msgspec.json.encode(reason).decode()


def note_problem(answered: Answered) -> Answered:
    """The same answer, with the reason if it cannot be parsed."""
    try:
        answer_in(answered.as_record(timestamp=0.0, session_id="", attempt=0))
    except ValueError as error:
        return structs.replace(answered, problem=str(error))
    return answered


def problem_with_ending(answer: Answer) -> str | None:
    """Why an answer is not complete; None if nothing speaks against it."""
    said = f"finish_reason {answer.finish_reason!r}"
    match answer.ending:
        case Ending.COMPLETE | Ending.UNSTATED:
            return None
        case Ending.TRUNCATED:
            is_only_thought = not answer.text and bool(_thoughts_in(answer.message))
            where = "in the model's reasoning, before any answer" if is_only_thought else "before its end"
            return f"it was cut off {where} ({said})"
        case Ending.FILTERED:
            return f"the provider withheld it, or the rest of it ({said})"
        case Ending.FAILED:
            return f"its generation broke off ({said})"
        case Ending.UNKNOWN:
            return f"whether it is complete is not known ({said})"


def problem_with(answer: Answer, body: JsonObject) -> str | None:
    """How an answer violates the response format or the tools of its request; None if it does not."""
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


def _length_or_none(usage: Usage | None, body: JsonObject) -> str | None:
    """`length` for an answer without a finish reason that has all the tokens it might have."""
    limits = [body.get(name) for name in ("max_completion_tokens", "max_tokens")]
    longest = max((limit for limit in limits if isinstance(limit, int)), default=None)
    is_full = usage is not None and longest is not None and usage.completion_tokens >= longest
    return _LENGTH if is_full else None


def _body_of(record: AnswerRecord) -> JsonObject:
    body = record.request.get("body") if isinstance(record.request, dict) else None
    return body if isinstance(body, dict) else {}


def _why_empty(message: Mapping[str, Any], finish_reason: str | None) -> str:
    """What is known of an answer in which nothing was said."""
    if finish_reason is None:
        return ""
    thoughts = ", only reasoning" if _thoughts_in(message) else ""
    return f"{thoughts} (finish_reason {finish_reason!r})"


def _thoughts_in(message: Mapping[str, Any]) -> object:
    return message.get("reasoning_content") or message.get("reasoning")


def _problem_with_format(answer: Answer, wanted: object) -> str | None:
    if not isinstance(wanted, Mapping) or wanted.get("type") not in ("json_object", "json_schema"):
        return None
    if not answer.text and (answer.message.get("tool_calls") or answer.message.get("refusal")):
        return None
    try:
        content = msgspec.json.decode(answer.text)
    except (msgspec.DecodeError, RecursionError) as error:
        return f"its content is not valid JSON ({error})"
    described = wanted.get("json_schema")
    schema = described.get("schema") if isinstance(described, Mapping) else None
    return _violation(content, schema, "its content")


def _problem_with_call(call: object, schemas: Mapping[str, object]) -> str | None:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return "a tool call has no function with arguments"
    name = function.get("name")
    if not isinstance(name, str) or name not in schemas:
        return f"it calls {name!r}, which was not offered"
    try:
        arguments = msgspec.json.decode(function["arguments"] or "{}")
    except (msgspec.DecodeError, RecursionError) as error:
        return f"the arguments of {name} are not valid JSON ({error})"
    return _violation(arguments, schemas[name], f"the arguments of {name}")


def _violation(content: Any, schema: object, what: str) -> str | None:
    if not isinstance(schema, dict):
        return None
    try:
        validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        validator.check_schema(schema)
        # Remote references are not fetched: checking an answer needs no network.
        errors = validator(schema, registry=EMPTY_REGISTRY).iter_errors(content)
        error = jsonschema.exceptions.best_match(errors)
    except (jsonschema.SchemaError, referencing.exceptions.Unresolvable, RecursionError):
        # The user's schema is invalid although the server accepted it: the answer cannot be checked.
        return None
    return None if error is None else f"{what}, at {error.json_path}: {error.message[:200]}"

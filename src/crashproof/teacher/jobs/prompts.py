"""Prompts of a generation job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from crashproof.errors import DataError
from crashproof.json_lines import read_objects

__all__ = ["Prompt", "problem_with_answer", "read_prompts", "trained_line"]

_FORMATS = 'A line is {"prompt": …}, {"messages": […], "tools": […]} or a line of a batch file.'
_ROLES = ("assistant", "developer", "function", "system", "tool", "user")
_ADDED_TO_A_LINE = ("logprobs", "sample", "teacher_text")
_KEPT_OF_AN_ANSWER = ("content", "refusal", "reasoning_content", "reasoning", "tool_calls")
_BATCH_URLS = ("/chat/completions", "/v1/chat/completions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One line of a file of prompts."""

    line: int
    """Its number, from 1."""
    messages: list[dict[str, Any]]
    """What the teacher is asked; a `{"prompt": …}` line is one message of the user."""
    text: str | None = None
    """The prompt of a `{"prompt": …}` line."""
    tools: list[dict[str, Any]] | None = None
    """Never empty."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """What the body of a batch line sets beside messages and tools: its model, its temperature."""
    custom_id: str | None = None
    """Of a batch line."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Fields that the job does not know, in order, for the line that is trained on."""


def read_prompts(path: Path) -> Iterator[Prompt]:
    """The prompts of a JSONL file, one line at a time; blank lines are skipped.

    Memory does not grow with the file, save for the names of batch lines.

    Raises:
        DataError: the file is missing or holds no prompt, or a line is malformed; tells which, and why.
    """
    num_prompts = 0
    lines_by_custom_id: dict[str, int] = {}
    for number, content in read_objects(path):
        try:
            prompt = _prompt(number, content)
        except ValueError as error:
            raise DataError(path, str(error), line=number, hint=_FORMATS) from None
        if prompt.custom_id is not None:
            earlier = lines_by_custom_id.setdefault(prompt.custom_id, number)
            if earlier != number:
                reason = f'its "custom_id" {prompt.custom_id!r} stands on line {earlier} already'
                raise DataError(path, reason, line=number, hint="Give each line a name of its own.")
        num_prompts += 1
        yield prompt
    if not num_prompts:
        raise DataError(path, "it holds no prompts", hint=_FORMATS)


def problem_with_answer(prompt: Prompt, message: Mapping[str, Any]) -> str | None:
    """Why the teacher's message makes no line to train on, or None."""
    content = message.get("content")
    if not isinstance(content, str | None):
        return f"its content is no text but a {type(content).__name__}"
    if prompt.text is None:
        has_something = any(message.get(key) for key in ("content", "refusal", "tool_calls"))
        return None if has_something else "it is empty"
    if message.get("tool_calls"):
        return "it calls a tool, and its prompt has none"
    if content:
        return None
    return "the teacher refused" if message.get("refusal") else "it is empty"


def trained_line(
    prompt: Prompt,
    message: Mapping[str, Any],
    *,
    sample: int = 0,
    num_samples: int = 1,
    logprobs: list[Any] | None = None,
) -> dict[str, Any]:
    """The line that a student is trained on: what was asked, what the teacher said, and the prompt's extra fields.

    The same answer makes the same line: no id and no time of the response is in it.

    Args:
        prompt: What was asked.
        message: The message of the response's choice.
        sample: Which of the answers to the prompt it is; a field of the line where there are several.
        num_samples: How many answers each prompt gets.
        logprobs: `choices[0].logprobs.content` of the response, where asked for.

    Raises:
        ValueError: the answer has a problem, see `problem_with_answer`.
    """
    problem = problem_with_answer(prompt, message)
    if problem:
        raise ValueError(f"The answer to line {prompt.line} cannot be used: {problem}.")
    line = _asked_and_said(prompt, message) | prompt.extra
    if num_samples > 1:
        line["sample"] = sample
    if logprobs is not None:
        line["logprobs"] = logprobs
    return line


def _asked_and_said(prompt: Prompt, message: Mapping[str, Any]) -> dict[str, Any]:
    if prompt.text is not None:
        return {"prompt": prompt.text, "teacher_text": message["content"]}
    # Some servers send every field that there is, empty ones too; only content may be.
    said = {key: message[key] for key in _KEPT_OF_AN_ANSWER if message.get(key)}
    answer = {"role": "assistant", "content": message.get("content")} | said
    line: dict[str, Any] = {"messages": [*prompt.messages, answer]}
    return line | {"tools": prompt.tools} if prompt.tools else line


def _prompt(number: int, content: dict[str, Any]) -> Prompt:
    """A line as a prompt; a ValueError says what is wrong with it."""
    reserved = [key for key in _ADDED_TO_A_LINE if key in content]
    if reserved:
        raise ValueError(f'"{reserved[0]}" is what the answer adds to the line; call that field otherwise')
    if "prompt" in content and "messages" in content:
        raise ValueError('it has both "prompt" and "messages"')
    if "prompt" in content:
        return _text_prompt(number, content)
    if "messages" in content:
        extra = {key: value for key, value in content.items() if key not in ("messages", "tools")}
        return Prompt(line=number, messages=_messages(content), tools=_tools(content), extra=extra)
    if "body" in content:
        return _batch_prompt(number, content)
    raise ValueError('it has neither "prompt" nor "messages"')


def _text_prompt(number: int, content: dict[str, Any]) -> Prompt:
    text = content["prompt"]
    if not isinstance(text, str) or not text:
        raise ValueError('"prompt" must be text that is not empty')
    if "tools" in content:
        raise ValueError('"tools" go with "messages", not with "prompt"')
    extra = {key: value for key, value in content.items() if key != "prompt"}
    return Prompt(line=number, messages=[{"role": "user", "content": text}], text=text, extra=extra)


def _batch_prompt(number: int, content: dict[str, Any]) -> Prompt:
    custom_id, body = content.get("custom_id"), content["body"]
    if not isinstance(custom_id, str) or not custom_id:
        raise ValueError('a batch line needs a "custom_id" that is text')
    if content.get("method") != "POST" or content.get("url") not in _BATCH_URLS:
        raise ValueError(f'a batch line must have "method": "POST" and "url": "{_BATCH_URLS[-1]}"')
    if "tools" in content:
        raise ValueError('the "tools" of a batch line belong into its "body"')
    if not isinstance(body, dict) or "messages" not in body:
        raise ValueError('the "body" of a batch line must be an object with "messages"')
    return Prompt(
        line=number,
        messages=_messages(body),
        tools=_tools(body),
        parameters={key: value for key, value in body.items() if key not in ("messages", "tools")},
        custom_id=custom_id,
        extra={key: value for key, value in content.items() if key not in ("method", "url", "body")},
    )


def _messages(content: dict[str, Any]) -> list[dict[str, Any]]:
    messages = content["messages"]
    if not isinstance(messages, list) or not messages:
        raise ValueError('"messages" must be a list that is not empty')
    for place, message in enumerate(messages, 1):
        problem = _problem_with_message(message)
        if problem:
            raise ValueError(f"message {place} {problem}")
    if messages[-1]["role"] == "assistant":
        raise ValueError("the last message is the assistant's, so nothing is asked; remove the answer")
    return messages


def _problem_with_message(message: Any) -> str | None:
    if not isinstance(message, dict):
        return "is no object"
    role = message.get("role")
    if not isinstance(role, str):
        return 'has no "role"'
    if role not in _ROLES:
        return f"has the unknown role {role!r}; known are {', '.join(_ROLES)}"
    return _problem_with_tool_calls(message.get("tool_calls")) or _problem_with_content(message)


def _problem_with_content(message: dict[str, Any]) -> str | None:
    content = message.get("content")
    if content is None:
        may_be_without = message["role"] == "assistant" and any(
            message.get(key) for key in ("tool_calls", "function_call", "refusal", "audio")
        )
        return None if may_be_without else 'has no "content"'
    if isinstance(content, str):
        return None
    if not isinstance(content, list) or not content:
        return 'has a "content" that is neither text nor a list of parts'
    return None if all(map(_is_part, content)) else 'has a part of "content" without "type", or without its "text"'


def _is_part(part: Any) -> bool:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        return False
    return part["type"] != "text" or isinstance(part.get("text"), str)


def _problem_with_tool_calls(calls: Any) -> str | None:
    if calls is None:
        return None
    if not isinstance(calls, list):
        return 'has "tool_calls" that are no list'
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return 'has a tool call without a "function" that has a "name"'
        if not _is_json_text(function.get("arguments")):
            return 'has a tool call whose "arguments" are no JSON in a string, such as "{\\"city\\": \\"Bonn\\"}"'
    return None


def _is_json_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        msgspec.json.decode(value)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True


def _tools(content: dict[str, Any]) -> list[dict[str, Any]] | None:
    tools = content.get("tools")
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(map(_is_tool, tools)):
        raise ValueError('"tools" must be a list of {"type": "function", "function": {"name": …}}')
    return tools or None


def _is_tool(tool: Any) -> bool:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        return False
    function = tool.get("function")
    return isinstance(function, dict) and isinstance(function.get("name"), str) and bool(function["name"])

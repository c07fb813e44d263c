"""Read prompts and build training lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from crashproof.data_files.reader import read_records
from crashproof.data_files.record import Place
from crashproof.data_files.selection import select_files
from crashproof.errors import DataError
from crashproof.rules.requests import JsonObject
from crashproof.samples.thoughts import thoughts_beside

__all__ = ["Prompt", "problem_with_answer", "read_prompts", "trained_line"]

_FORMATS = 'A line is {"prompt": …}, {"messages": […], "tools": […]} or a line of a batch file.'
_ROLES = ("assistant", "developer", "function", "system", "tool", "user")
_RESERVED_FIELDS = ("finish_reason", "logprobs", "sample", "teacher_text")
_KEPT_ANSWER_FIELDS = ("content", "refusal", "reasoning_content", "reasoning", "tool_calls")
_BATCH_URLS = ("/chat/completions", "/v1/chat/completions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One line of a file of prompts."""

    line: int
    """Line number, from 1."""
    messages: list[JsonObject]
    """The messages to send; a `{"prompt": …}` line becomes one user message."""
    text: str | None = None
    """The prompt of a `{"prompt": …}` line."""
    tools: list[JsonObject] | None = None
    """Never empty."""
    parameters: JsonObject = field(default_factory=dict)
    """Other fields of a batch line's body, such as its model and temperature."""
    custom_id: str | None = None
    """The id of a batch line."""
    extra: JsonObject = field(default_factory=dict)
    """Unknown fields, in order, copied to the training line."""
    place: Place | None = field(default=None, compare=False)
    """None if it stands in no file."""


def read_prompts(path: Path, *, split: str | None = None) -> Iterator[Prompt]:
    """Yield the prompts of a file, or of a folder's files, one line at a time; blank lines are skipped.

    Memory does not grow with a file of JSON lines, except by 80 bytes for the id of each batch line.

    Raises:
        DataError: the file is missing or holds no prompt, or a line is malformed; names the line and the reason.
    """
    num_prompts = 0
    seen: set[int] = set()
    files = select_files(path, split=split)
    for prompt in _read_unchecked(files):
        if prompt.custom_id is not None:
            digest = _digest(prompt.custom_id)
            if digest in seen:
                _check_not_used_before(prompt, files)
            seen.add(digest)
        num_prompts += 1
        yield prompt
    if not num_prompts:
        raise DataError(path, "it contains no prompts", hint=_FORMATS)


def _read_unchecked(files: Sequence[Path]) -> Iterator[Prompt]:
    for record in chain.from_iterable(map(read_records, files)):
        try:
            yield replace(_prompt(record.place.number, record.content), place=record.place)
        except ValueError as error:
            raise record.place.error(str(error), hint=_FORMATS) from None


def _digest(custom_id: str) -> int:
    return int.from_bytes(blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _check_not_used_before(prompt: Prompt, files: Sequence[Path]) -> None:
    """Look for an earlier prompt with the same custom id: two ids can have one digest."""
    place = prompt.place
    assert place is not None
    earlier = next(each.place for each in _read_unchecked(files) if each.custom_id == prompt.custom_id)
    assert earlier is not None
    if earlier != place:
        where = f"on {earlier.unit} {earlier.number}" if earlier.path == place.path else f"in {earlier.path}"
        reason = f'its "custom_id" {prompt.custom_id!r} is already used {where}'
        raise place.error(reason, hint="Give each line its own custom_id.")


def problem_with_answer(prompt: Prompt, message: Mapping[str, object], *, takes_refusals: bool = False) -> str | None:
    """Why the teacher's message makes no training line, or None.

    Args:
        prompt: What was asked.
        message: The message of the response's choice.
        takes_refusals: Whether a refusal answers a `{"prompt": …}` line too, whose own line could not mark it as one.
    """
    content = message.get("content")
    if not isinstance(content, str | None):
        return f"its content is not text but a {type(content).__name__}"
    if content:
        return "it calls a tool, but its prompt has none" if prompt.text and message.get("tool_calls") else None
    if prompt.text is None:
        return None if message.get("refusal") or message.get("tool_calls") else "it is empty"
    if message.get("tool_calls"):
        return "it calls a tool, but its prompt has none"
    if not message.get("refusal"):
        return "it is empty"
    return None if takes_refusals else "the teacher refused"


def trained_line(
    prompt: Prompt,
    message: Mapping[str, object],
    *,
    sample: int = 0,
    num_samples: int = 1,
    logprobs: list[Any] | None = None,
    finish_reason: str | None = None,
) -> JsonObject:
    """The line that a student is trained on: the prompt, the answer, and the prompt's extra fields.

    The same answer makes the same line: ids and times of the response are left out.

    Args:
        prompt: The prompt.
        message: The message of the response's choice, in which `problem_with_answer` finds no problem.
        sample: Index among the answers to the prompt; a field of the line if there are several.
        num_samples: Answers per prompt.
        logprobs: `choices[0].logprobs.content` of the response, if requested.
        finish_reason: Why the answer ended, as the server says.
    """
    line = _prompt_and_answer(prompt, message) | {"finish_reason": finish_reason} | prompt.extra
    if num_samples > 1:
        line["sample"] = sample
    if logprobs is not None:
        line["logprobs"] = logprobs
    return line


def _prompt_and_answer(prompt: Prompt, message: Mapping[str, object]) -> JsonObject:
    if prompt.text is not None:
        thoughts = thoughts_beside(message)
        answer_text: JsonObject = {"prompt": prompt.text, "teacher_text": message["content"]}
        return answer_text | {"reasoning_content": thoughts} if thoughts else answer_text
    # Some servers send empty fields; only content may be empty.
    kept = {key: message[key] for key in _KEPT_ANSWER_FIELDS if message.get(key)}
    answer = {"role": "assistant", "content": message.get("content")} | kept
    line: JsonObject = {"messages": [*prompt.messages, answer]}
    return line | {"tools": prompt.tools} if prompt.tools else line


def _prompt(number: int, content: JsonObject) -> Prompt:
    """Parse a line; raises ValueError with what is wrong with it."""
    reserved = [key for key in _RESERVED_FIELDS if key in content]
    if reserved:
        raise ValueError(f'"{reserved[0]}" is reserved for the answer; rename that field')
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


def _text_prompt(number: int, content: JsonObject) -> Prompt:
    text = content["prompt"]
    if not isinstance(text, str) or not text:
        raise ValueError('"prompt" must be a non-empty string')
    if "tools" in content:
        raise ValueError('"tools" need "messages" instead of "prompt"')
    extra = {key: value for key, value in content.items() if key != "prompt"}
    return Prompt(line=number, messages=[{"role": "user", "content": text}], text=text, extra=extra)


def _batch_prompt(number: int, content: JsonObject) -> Prompt:
    custom_id, body = content.get("custom_id"), content["body"]
    if not isinstance(custom_id, str) or not custom_id:
        raise ValueError('a batch line needs a "custom_id" that is a string')
    if content.get("method") != "POST" or content.get("url") not in _BATCH_URLS:
        raise ValueError(f'a batch line must have "method": "POST" and "url": "{_BATCH_URLS[-1]}"')
    if "tools" in content:
        raise ValueError('the "tools" of a batch line belong in its "body"')
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


def _messages(content: JsonObject) -> list[JsonObject]:
    messages = content["messages"]
    if not isinstance(messages, list) or not messages:
        raise ValueError('"messages" must be a non-empty list')
    for place, message in enumerate(messages, 1):
        problem = _problem_with_message(message)
        if problem:
            raise ValueError(f"message {place} {problem}")
    if messages[-1]["role"] == "assistant":
        raise ValueError("the last message is the assistant's; remove it, so that the prompt ends with a question")
    return messages


def _problem_with_message(message: object) -> str | None:
    if not isinstance(message, dict):
        return "is not an object"
    role = message.get("role")
    if not isinstance(role, str):
        return 'has no "role"'
    if role not in _ROLES:
        return f"has the unknown role {role!r}; known are {', '.join(_ROLES)}"
    return _problem_with_tool_calls(message.get("tool_calls")) or _problem_with_content(message)


def _problem_with_content(message: JsonObject) -> str | None:
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


def _is_part(part: object) -> bool:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        return False
    return part["type"] != "text" or isinstance(part.get("text"), str)


def _problem_with_tool_calls(calls: object) -> str | None:
    if calls is None:
        return None
    if not isinstance(calls, list):
        return 'has "tool_calls" that are not a list'
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return 'has a tool call without a "function" that has a "name"'
        if not _is_json_text(function.get("arguments")):
            return 'has a tool call whose "arguments" are not a JSON string, such as "{\\"city\\": \\"Bonn\\"}"'
    return None


def _is_json_text(value: object) -> bool:
    if not isinstance(value, str):
        return False
    if not value:
        # Some servers write the arguments of a call without any so.
        return True
    try:
        msgspec.json.decode(value)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True


def _tools(content: JsonObject) -> list[JsonObject] | None:
    tools = content.get("tools")
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(map(_is_tool, tools)):
        raise ValueError('"tools" must be a list of {"type": "function", "function": {"name": …}}')
    return tools or None


def _is_tool(tool: object) -> bool:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        return False
    function = tool.get("function")
    return isinstance(function, dict) and isinstance(function.get("name"), str) and bool(function["name"])

"""Content of a message, in parts or not."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from crashproof.samples.calls import CHAT_HINT
from crashproof.samples.problems import InvalidSample, LeftOut

__all__ = ["UNREADABLE", "Content", "read_content"]

_TEXT = frozenset({"text", "input_text", "output_text"})
_THOUGHTS = frozenset({"thinking", "reasoning", "reasoning_text", "summary_text", "think", "thought"})
_MEDIA = ("image", "audio", "video", "file", "document")
UNREADABLE = "The student reads text alone; take the text parts out of such lines to learn from them."


@dataclass(slots=True, kw_only=True)
class Content:
    """What a message says."""

    text: str | None = None
    """All parts of text, joined without anything between them; None if there are none."""
    thoughts: str = ""
    refusal: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    """Calls in the form of Anthropic's API, not checked yet."""
    results: list[dict[str, Any]] = field(default_factory=list)
    """Messages of the role `tool`, from results in the form of Anthropic's API."""


def read_content(value: object, number: int, role: str) -> Content:
    """The content of message `number`.

    Raises:
        InvalidSample: It is neither text nor parts.
        LeftOut: A part is an image, audio or a file.
    """
    if value is None or isinstance(value, str):
        return Content(text=value)
    if role == "tool" and not _is_parts(value):
        # Some write the object that a tool returned.
        return Content(text=json.dumps(value, ensure_ascii=False))
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        may_be = "null or text" if role == "assistant" else "text"
        raise InvalidSample(f'the "content" of message {number} ({role}) must be {may_be}', CHAT_HINT)
    content = Content()
    for part in value:
        _add_part(content, part, number, role)
    return content


def _is_parts(value: object) -> bool:
    parts = value if isinstance(value, list) else []
    return bool(parts) and all(isinstance(part, dict) and "type" in part for part in parts)


def _add_part(content: Content, part: object, number: int, role: str) -> None:
    kind = "text" if isinstance(part, str) else part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise InvalidSample(f'a part of the "content" of message {number} ({role}) has no "type"', CHAT_HINT)
    fields: dict[str, Any] = part if isinstance(part, dict) else {"text": part}
    if kind in _TEXT:
        content.text = (content.text or "") + _text(fields, "text", number, role)
    elif kind == "refusal":
        content.refusal += _text(fields, "refusal", number, role)
    elif kind in _THOUGHTS:
        content.thoughts += _thoughts(fields)
    elif kind == "redacted_thinking":
        pass
    elif kind == "tool_use":
        content.calls.append(fields)
    elif kind == "tool_result":
        content.results.append(_result(fields, number))
    else:
        raise _unreadable(kind, number, role)


def _unreadable(kind: str, number: int, role: str) -> Exception:
    media = next((word for word in _MEDIA if word in kind), None)
    if media is None:
        return InvalidSample(f'message {number} ({role}) has a part of the unknown type "{kind}"', CHAT_HINT)
    return LeftOut(f"a message has {'an' if media[0] in 'aeiou' else 'a'} {media} part", UNREADABLE)


def _text(fields: dict[str, Any], name: str, number: int, role: str) -> str:
    text = fields.get(name)
    if not isinstance(text, str):
        raise InvalidSample(f'a part of the "content" of message {number} ({role}) has no "{name}"', CHAT_HINT)
    return text


def _thoughts(fields: dict[str, Any]) -> str:
    for name in ("thinking", "text", "reasoning", "think", "summary"):
        value = fields.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, list):
            return "".join(_thoughts(each) for each in value if isinstance(each, dict))
    return ""


def _result(fields: dict[str, Any], number: int) -> dict[str, Any]:
    text = read_content(fields.get("content"), number, "tool").text or ""
    named = fields.get("tool_use_id")
    return {"role": "tool", "content": text} | ({"tool_call_id": named} if named is not None else {})

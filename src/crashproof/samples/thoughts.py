"""A teacher's thoughts beside its answer."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["THOUGHT_FIELDS", "split_thoughts", "thoughts_beside", "with_thoughts"]

THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
"""Fields of a message or a line, as providers name them."""

_OPENED = re.compile(r"\A\s*<think(?:ing)?>(.*?)(?:</think(?:ing)?>\s*|\Z)", re.DOTALL)
# Where the prompt's template has opened the block already, an answer only closes it.
_CLOSED = re.compile(r"\A(.*?)</think>\s*", re.DOTALL)


def split_thoughts(text: str) -> tuple[str, str]:
    """The thoughts that stand at the beginning of an answer as `<think>…</think>`, and the rest."""
    match = _OPENED.match(text)
    if match is None and "</think>" in text and "<think>" not in text:
        match = _CLOSED.match(text)
    return (match[1].strip(), text[match.end() :]) if match else ("", text)


def thoughts_beside(fields: Mapping[str, object]) -> str:
    """The thoughts in a field of its own; empty without any."""
    for name in THOUGHT_FIELDS:
        thoughts = _text_of(fields.get(name))
        if thoughts.strip():
            return thoughts.strip()
    return ""


def with_thoughts(thoughts: str, answer: str) -> str:
    """An answer behind its thoughts, as reasoning models write them."""
    return f"<think>\n{thoughts}\n</think>\n\n{answer}" if thoughts else answer


def _text_of(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_text_of, value))
    if isinstance(value, dict):
        return next((text for name in ("text", "thinking", "summary") if (text := _text_of(value.get(name)))), "")
    return ""

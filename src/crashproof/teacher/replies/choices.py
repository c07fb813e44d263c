"""The choices of a response."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["choices_of", "first_choice", "generated_texts", "has_generated"]

_GENERATED = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls", "function_call")
"""What a model says in a message; each of it is charged as output."""


def choices_of(response: Mapping[str, object]) -> list[Mapping[str, Any]]:
    """All choices that are objects; none if the response has no list of them."""
    choices = response.get("choices")
    return [each for each in choices if isinstance(each, Mapping)] if isinstance(choices, list) else []


def first_choice(response: Mapping[str, object]) -> Mapping[str, Any] | None:
    """The choice that is the answer; None if there is none."""
    return next(iter(choices_of(response)), None)


def generated_texts(response: Mapping[str, object]) -> Iterator[object]:
    """Everything that the model has said in all choices: texts, parts and calls."""
    for choice in choices_of(response):
        message = choice.get("message")
        if isinstance(message, Mapping):
            yield from (message[name] for name in _GENERATED if message.get(name))
        if choice.get("text"):
            yield choice["text"]


def has_generated(response: Mapping[str, object]) -> bool:
    """Whether a response holds anything that a model has said."""
    return next(generated_texts(response), None) is not None

"""Where calls stand in a rendered conversation."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from crashproof.distillation.data.restated import restated_spans
from crashproof.distillation.data.tool_conversations import Call, Conversation
from crashproof.distillation.text.chat import render_chat, render_text

__all__ = ["CallSpan", "RenderedChat", "rendered"]

Span = tuple[int, int]

_MARK = re.compile(r'crashproofname(\d+)x|\{\s*"crashproofarguments(\d+)x"\s*:\s*0\s*\}')


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSpan:
    """The characters of one call."""

    call: Call
    turn: Span
    """The assistant's turn that it stands in."""
    name: Span
    arguments: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedChat:
    """A conversation through a chat template."""

    text: str
    turns: list[Span]
    """Of the assistant; its end marks included."""
    calls: list[CallSpan]
    """In the order of the text."""
    restated: list[Span]
    """What the answers say again of the tools' results."""


def rendered(conversation: Conversation, tokenizer: PreTrainedTokenizerFast, *, min_words: int) -> RenderedChat:
    """A conversation as the student reads it, and where its parts stand.

    The same conversation is rendered once more with marks for the names and arguments of all calls. What lies between
    the marks must be what lies between the names and arguments, so any template is read exactly, or not at all.

    Args:
        conversation: Checked.
        tokenizer: Its chat template is used, or the built-in one.
        min_words: Words of the shortest run that restates part of a value; see `restated_spans`.

    Raises:
        ValueError: the template refuses the messages, rewrites earlier ones, or writes no JSON arguments.
    """
    text, turns = render_chat(conversation.messages, tokenizer, tools=conversation.tools)
    marked = render_text(_marked(conversation), tokenizer, tools=conversation.tools)
    names, arguments = _found(text, marked, conversation.calls)
    places = [place for place, message in enumerate(conversation.messages) if message["role"] == "assistant"]
    turn_of = dict(zip(places, turns, strict=True))
    calls = [
        _call_span(call, turn_of[call.message], names[number], arguments[number])
        for number, call in enumerate(conversation.calls)
    ]
    return RenderedChat(
        text=text, turns=turns, calls=calls, restated=_restated(conversation, text, turn_of, min_words)
    )


def _marked(conversation: Conversation) -> list[dict[str, Any]]:
    marked, number = [], 0
    for message in conversation.messages:
        calls = []
        for call in message.get("tool_calls") or ():
            function = {"name": f"crashproofname{number}x", "arguments": {f"crashproofarguments{number}x": 0}}
            calls.append(call | {"function": function})
            number += 1
        marked.append(message | {"tool_calls": calls} if calls else message)
    return marked


def _found(text: str, marked: str, calls: list[Call]) -> tuple[list[list[Span]], list[list[Span]]]:
    """The characters in `text` that each mark in `marked` stands for."""
    names: list[list[Span]] = [[] for _ in calls]
    arguments: list[list[Span]] = [[] for _ in calls]
    place = last = 0
    for mark in _MARK.finditer(marked):
        place = _behind(text, place, marked[last : mark.start()])
        if mark[1] is not None:
            call, spans = calls[int(mark[1])], names[int(mark[1])]
            end = _behind(text, place, call.name)
        else:
            call, spans = calls[int(mark[2])], arguments[int(mark[2])]
            end = _behind_arguments(text, place, call)
        spans.append((place, end))
        place, last = end, mark.end()
    if _behind(text, place, marked[last:]) != len(text):
        raise _unreadable("its text goes on where it should end")
    return names, arguments


def _behind(text: str, place: int, expected: str) -> int:
    if not text.startswith(expected, place):
        raise _unreadable(f"{text[place : place + 40]!r} stands where {expected[:40]!r} should")
    return place + len(expected)


def _behind_arguments(text: str, place: int, call: Call) -> int:
    try:
        value, end = json.JSONDecoder().raw_decode(text, place)
    except json.JSONDecodeError as error:
        raise _unreadable(f"the arguments of {call.name} are no JSON in it") from error
    if value != call.arguments:
        raise _unreadable(f"the arguments of {call.name} are others in it")
    return end


def _unreadable(reason: str) -> ValueError:
    return ValueError(f"the chat template writes calls in a way that cannot be followed: {reason}")


def _call_span(call: Call, turn: Span, names: list[Span], arguments: list[Span]) -> CallSpan:
    inside = [span for span in arguments if turn[0] <= span[0] and span[1] <= turn[1]]
    if len(inside) != 1:
        raise ValueError(f"the chat template does not write the arguments of {call.name} as JSON, once, in its turn")
    before = [span for span in names if turn[0] <= span[0] and span[1] <= inside[0][0]]
    if not before:
        raise ValueError(f"the chat template does not write the name {call.name} before its arguments")
    return CallSpan(call=call, turn=turn, name=before[-1], arguments=inside[0])


def _restated(conversation: Conversation, text: str, turn_of: dict[int, Span], min_words: int) -> list[Span]:
    results: list[str] = []
    spans: list[Span] = []
    for place, message in enumerate(conversation.messages):
        if message["role"] == "tool":
            results.append(message["content"])
        if message["role"] != "assistant" or message.get("tool_calls"):
            continue
        is_last = place == len(conversation.messages) - 1
        if is_last and conversation.restated is not None:
            found = conversation.restated
        else:
            found = restated_spans(message["content"], results, min_words=min_words)
        if found:
            start = _content_start(text, message["content"], turn_of[place])
            spans += [(start + begin, start + end) for begin, end in found]
    return spans


def _content_start(text: str, content: str, turn: Span) -> int:
    """Where the first character of an answer would stand; templates may strip what is around it."""
    start = text.find(content.strip(), *turn)
    if start < 0:
        raise ValueError("the chat template rewrites the answer, so what it restates cannot be found in its text")
    return start - (len(content) - len(content.lstrip()))

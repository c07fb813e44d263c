"""Positions of calls in a rendered conversation."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from crashproof.distillation.data.answered.cut_answers import up_to_cut
from crashproof.distillation.data.restated_spans import restated_spans
from crashproof.distillation.data.tool_conversations import Call, Conversation
from crashproof.distillation.text.chat import render_chat, render_text
from crashproof.samples.messages import Message

__all__ = ["CallSpan", "RenderedChat", "render_conversation"]

Span = tuple[int, int]

_MARK = re.compile(r'crashproofname(\d+)x|\{\s*"crashproofarguments(\d+)x"\s*:\s*0\s*\}')


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSpan:
    """The characters of one call."""

    call: Call
    turn: Span
    """The assistant's turn that contains it."""
    name: Span
    arguments: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedChat:
    """A conversation rendered by a chat template."""

    text: str
    turns: list[Span]
    """The assistant's that are learned, including their end marks."""
    calls: list[CallSpan]
    """In the order of the text."""
    restated: list[Span]
    """What the answers restate of the tools' results."""


def render_conversation(
    conversation: Conversation, tokenizer: PreTrainedTokenizerFast, *, min_words: int
) -> RenderedChat:
    """Render a conversation and locate its parts.

    The conversation is rendered a second time with markers in place of the names and arguments of all calls. The text
    between the markers must equal the text between the names and arguments, so any template is read exactly, or not
    at all.

    Args:
        conversation: Checked.
        tokenizer: Its chat template is used, or the built-in one.
        min_words: Minimum words that restate part of a value; see `restated_spans`.

    Raises:
        ValueError: The template refuses the messages, rewrites earlier ones, or writes no JSON arguments.
    """
    text, turns = render_chat(conversation.messages, tokenizer, tools=conversation.tools)
    marked = render_text(_marked(conversation), tokenizer, tools=conversation.tools)
    names, arguments = _locate(text, marked, conversation.calls)
    if conversation.is_cut:
        turns = _up_to_cut(conversation.messages[-1], text, turns, arguments)
    places = [place for place, message in enumerate(conversation.messages) if message["role"] == "assistant"]
    turn_of = dict(zip(places, turns, strict=True))
    calls = [
        _call_span(call, turn_of[call.message], names[number], arguments[number])
        for number, call in enumerate(conversation.calls)
    ]
    learned = [turn for place, turn in turn_of.items() if place not in conversation.unlearned]
    return RenderedChat(
        text=text, turns=learned, calls=calls, restated=_restated(conversation, text, turn_of, min_words)
    )


def _up_to_cut(last: Message, text: str, turns: list[Span], arguments: list[list[Span]]) -> list[Span]:
    """The turns, the last of them without what the template adds behind it."""
    if last.get("tool_calls"):
        return [*turns[:-1], (turns[-1][0], arguments[-1][-1][1])]
    return up_to_cut(text, turns, last["content"])[1]


def _marked(conversation: Conversation) -> list[Message]:
    marked, number = [], 0
    for message in conversation.messages:
        calls = []
        for call in message.get("tool_calls") or ():
            function = {"name": f"crashproofname{number}x", "arguments": {f"crashproofarguments{number}x": 0}}
            calls.append(call | {"function": function})
            number += 1
        marked.append(message | {"tool_calls": calls} if calls else message)
    return marked


def _locate(text: str, marked: str, calls: list[Call]) -> tuple[list[list[Span]], list[list[Span]]]:
    """The characters in `text` of each marker in `marked`."""
    names: list[list[Span]] = [[] for _ in calls]
    arguments: list[list[Span]] = [[] for _ in calls]
    place = last = 0
    for mark in _MARK.finditer(marked):
        place = _skip(text, place, marked[last : mark.start()])
        if mark[1] is not None:
            call, spans = calls[int(mark[1])], names[int(mark[1])]
            end = _skip(text, place, call.name)
        else:
            call, spans = calls[int(mark[2])], arguments[int(mark[2])]
            end = _skip_arguments(text, place, call)
        spans.append((place, end))
        place, last = end, mark.end()
    if _skip(text, place, marked[last:]) != len(text):
        raise _unreadable("there is more text where it should end")
    return names, arguments


def _skip(text: str, place: int, expected: str) -> int:
    if not text.startswith(expected, place):
        raise _unreadable(f"found {text[place : place + 40]!r} instead of {expected[:40]!r}")
    return place + len(expected)


def _skip_arguments(text: str, place: int, call: Call) -> int:
    try:
        value, end = json.JSONDecoder().raw_decode(text, place)
    except json.JSONDecodeError as error:
        raise _unreadable(f"the arguments of {call.name} are not JSON") from error
    if value != call.arguments:
        raise _unreadable(f"the arguments of {call.name} are changed")
    return end


def _unreadable(reason: str) -> ValueError:
    return ValueError(f"the calls cannot be found in the text of the chat template: {reason}")


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
    """The position of an answer's first character; templates may strip white space around the answer."""
    start = text.find(content.strip(), *turn)
    if start < 0:
        raise ValueError("the chat template rewrites the answer, so the restated values cannot be found in the text")
    return start - (len(content) - len(content.lstrip()))

"""Messages of a chat, in any of their forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from crashproof.samples.calls import CHAT_HINT, calls_misplaced, read_calls, read_function_calls
from crashproof.samples.content import Content, read_content
from crashproof.samples.problems import InvalidSample
from crashproof.samples.rules import SampleRules
from crashproof.samples.thoughts import THOUGHT_FIELDS, split_thoughts, thoughts_beside

__all__ = ["REASONING_NOTE", "Chat", "Message", "is_turn", "read_messages"]

Message = dict[str, Any]
"""As OpenAI's chat API takes it, save that contents are text, and that the arguments of calls are objects, as chat
templates take them. Thoughts are its `reasoning_content`."""

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
}
"""The four roles that templates know, by the names that they are given."""
_CALLING_ROLES = frozenset({"function_call", "tool_call"})
_READ = frozenset(
    {"role", "from", "content", "value", "tool_calls", "function_call", "refusal", "audio", "weight", "train"}
    | {"annotations", *THOUGHT_FIELDS}
)
"""Fields of a message that are read here, or say nothing to a student."""
REASONING_NOTE = "reasoning is not learned (data.learn_reasoning: true learns it)"
REFUSAL_NOTE = "refusals are context, and not learned (data.learn_refusals: true learns them)"
EMPTY_NOTE = "empty answers are context, and not learned"
DEVELOPER_NOTE = "messages of the role developer are read as the system's"


@dataclass(slots=True, kw_only=True)
class Chat:
    """Messages, read."""

    messages: list[Message] = field(default_factory=list)
    unlearned: list[int] = field(default_factory=list)
    """Indices of the assistant's messages that are context only."""
    refusals: list[int] = field(default_factory=list)
    """Those among them that are refusals."""
    notes: set[str] = field(default_factory=set)
    """What was read otherwise than it is written."""

    def is_learned(self, index: int) -> bool:
        """Whether a message is the assistant's, and to be learned."""
        return self.messages[index]["role"] == "assistant" and index not in self.unlearned


def is_turn(value: object) -> bool:
    """Whether a value looks like a message: somebody who speaks, and what is said."""
    if not isinstance(value, dict):
        return False
    return ("role" in value and bool({"content", "tool_calls", "function_call"} & value.keys())) or (
        "from" in value and "value" in value
    )


def read_messages(value: object, rules: SampleRules) -> Chat:
    """Check messages, and bring them into the one form that recipes and templates read.

    Reading what was read changes nothing.

    Raises:
        InvalidSample: A message is malformed.
        LeftOut: A message has a part that is not text.
    """
    if not isinstance(value, list) or not value:
        raise InvalidSample('"messages" must be a non-empty list', CHAT_HINT)
    chat = Chat()
    for number, message in enumerate(value, 1):
        _read_message(chat, message, number, rules)
    return chat


def _read_message(chat: Chat, message: object, number: int, rules: SampleRules) -> None:
    role, given_role = _role(message, number)
    assert isinstance(message, dict)
    value = message.get("content", message.get("value"))
    if given_role in _CALLING_ROLES:
        content = Content(calls=read_function_calls(value, number))
    else:
        content = read_content(value, number, role)
    chat.messages += content.results
    if content.results and content.text is None:
        return
    others = {name: each for name, each in message.items() if name not in _READ and each is not None}
    if given_role == "developer":
        chat.notes.add(DEVELOPER_NOTE)
    if role == "assistant":
        chat.messages.append(_of_assistant(chat, message, content, number, rules) | others)
        return
    if message.get("tool_calls"):
        raise InvalidSample(calls_misplaced(number), CHAT_HINT)
    if content.text is None:
        raise InvalidSample(f'the "content" of message {number} ({given_role}) must be text', CHAT_HINT)
    chat.messages.append({"role": role, "content": content.text} | others)


def _role(message: object, number: int) -> tuple[str, str]:
    """The role as templates know it, and as it is given."""
    given = message.get("role", message.get("from")) if isinstance(message, dict) else None
    if not isinstance(given, str):
        raise InvalidSample(f'message {number} needs a "role"', CHAT_HINT)
    role = _ROLES.get(given.lower())
    if role is None:
        known = ", ".join(_ROLES)
        raise InvalidSample(f'message {number} has the unknown role "{given}"', f"Known roles are {known}.")
    return role, given.lower()


def _of_assistant(
    chat: Chat, message: Mapping[str, Any], content: Content, number: int, rules: SampleRules
) -> Message:
    calls = _calls(message, content, number)
    refusal = content.refusal or str(message.get("refusal") or "")
    inline, text = split_thoughts(content.text) if content.text else ("", content.text)
    thoughts = thoughts_beside(message) or content.thoughts.strip() or inline
    read: Message = {"role": "assistant", "content": text if calls else text or ""}
    if thoughts and not rules.learns_reasoning:
        chat.notes.add(REASONING_NOTE)
    elif thoughts:
        read["reasoning_content"] = thoughts
    if calls:
        read["tool_calls"] = calls
    elif refusal and not text:
        read["content"] = refusal
        _note_refusal(chat, rules)
    elif not read["content"].strip():
        # Only the end mark would be learned.
        chat.unlearned.append(len(chat.messages))
        chat.notes.add(EMPTY_NOTE)
    if message.get("weight") == 0 or message.get("train") is False:
        chat.unlearned.append(len(chat.messages))
    return read


def _note_refusal(chat: Chat, rules: SampleRules) -> None:
    if not rules.learns_refusals:
        chat.refusals.append(len(chat.messages))
        chat.unlearned.append(len(chat.messages))
        chat.notes.add(REFUSAL_NOTE)


def _calls(message: Mapping[str, Any], content: Content, number: int) -> list[dict[str, Any]]:
    calls = message.get("tool_calls") or []
    if content.calls:
        calls = [*calls, *content.calls] if isinstance(calls, list) else calls
    if not calls and isinstance(message.get("function_call"), dict):
        calls = [message["function_call"]]
    return read_calls(calls, number) if calls else []

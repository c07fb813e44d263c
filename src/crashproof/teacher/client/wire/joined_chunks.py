"""Join the chunks of a streamed completion.

The result is the object that the server would have sent in one piece, whatever the chunks carry: text, thoughts, tool
calls, log-probabilities, several choices in any order, usage, an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crashproof.rules.requests import JsonObject

__all__ = ["JoinedChunks"]

_TEXTS = frozenset({"content", "reasoning", "reasoning_content", "refusal", "thinking"})
"""Fields of a message that come in parts, as text."""
_OF_A_CHOICE_IN_PARTS = frozenset({"delta", "message", "text", "logprobs", "index"})
_OF_A_BODY_IN_PARTS = frozenset({"choices", "object", "usage", "message", "done", "done_reason"})
_KNOWN = frozenset({"choices", "error", "done", "usage"})
_MOST_CHOICES = 1024


class JoinedChunks:
    """Takes chunks in their order; `body` is what they add up to so far."""

    def __init__(self) -> None:
        self._frame: JsonObject = {}
        self._choices: dict[int, _JoinedChoice] = {}
        self.has_unknown = False
        """Whether a chunk held something that is no part of a completion."""
        self._is_plainly_done = False
        """Whether a line of Ollama's form said so."""

    @staticmethod
    def knows(chunk: Mapping[str, object]) -> bool:
        """Whether an object is a chunk of a stream: OpenAI's form, or that of Ollama's own API."""
        choices = chunk.get("choices")
        has_delta = isinstance(choices, list) and any(isinstance(each, dict) and "delta" in each for each in choices)
        return has_delta or chunk.get("object") == "chat.completion.chunk" or isinstance(chunk.get("done"), bool)

    @property
    def has_answer(self) -> bool:
        """Whether anything was generated."""
        return any(choice.has_answer for choice in self._choices.values())

    @property
    def is_finished(self) -> bool:
        """Whether each choice has said why it ended."""
        is_each_finished = bool(self._choices) and all(each.is_finished for each in self._choices.values())
        return self._is_plainly_done or is_each_finished

    def add(self, chunk: JsonObject) -> None:
        """Take the next chunk."""
        self.has_unknown = self.has_unknown or bool(chunk and not _KNOWN & chunk.keys())
        choices = chunk.get("choices")
        for place, choice in enumerate(choices if isinstance(choices, list) else []):
            if isinstance(choice, dict):
                self._choice(choice.get("index", place)).add(choice)
        for name, value in chunk.items():
            if name not in _OF_A_BODY_IN_PARTS and value is not None:
                self._frame[name] = value
        self._add_usage(chunk)
        if isinstance(chunk.get("done"), bool):
            self._add_plain_line(chunk)

    def body(self) -> JsonObject:
        """The whole completion; only its error, or nothing, where no answer came."""
        if not self._choices or ("error" in self._frame and not self.has_answer):
            return {"error": self._frame["error"]} if "error" in self._frame else {}
        choices = [choice.as_whole(index) for index, choice in sorted(self._choices.items())]
        return {**self._frame, "object": "chat.completion", "choices": choices}

    def _choice(self, index: object) -> _JoinedChoice:
        number = index if isinstance(index, int) and 0 <= index < _MOST_CHOICES else 0
        return self._choices.setdefault(number, _JoinedChoice())

    def _add_usage(self, chunk: Mapping[str, Any]) -> None:
        # Groq puts it into a field of its own; the counts of several chunks are running totals.
        groq = chunk.get("x_groq")
        for usage in (groq.get("usage") if isinstance(groq, dict) else None, chunk.get("usage")):
            if usage:
                self._frame["usage"] = usage

    def _add_plain_line(self, line: Mapping[str, Any]) -> None:
        """A line of Ollama's own form."""
        message = line.get("message")
        choice = self._choice(0)
        if isinstance(message, dict):
            choice.add({"delta": message})
        elif isinstance(line.get("response"), str):
            choice.add({"delta": {"content": line["response"]}})
        if line["done"]:
            self._is_plainly_done = True
            choice.add({"finish_reason": line.get("done_reason") or "stop"})
            counts = line.get("prompt_eval_count"), line.get("eval_count")
            if all(isinstance(count, int) for count in counts):
                self._frame["usage"] = {"prompt_tokens": counts[0], "completion_tokens": counts[1]}


class _JoinedChoice:
    """One choice, joined."""

    def __init__(self) -> None:
        self._message: JsonObject = {}
        self._texts: dict[str, list[str]] = {}
        self._calls: list[JsonObject] = []
        self._logprobs: dict[str, list[object]] | None = None
        self._rest: JsonObject = {}

    @property
    def has_answer(self) -> bool:
        return (
            any(map("".join, self._texts.values()))
            or bool(self._calls)
            or any(value for name, value in self._message.items() if name != "role")
        )

    @property
    def is_finished(self) -> bool:
        return self._rest.get("finish_reason") is not None

    def add(self, choice: Mapping[str, Any]) -> None:
        if isinstance(choice.get("message"), dict):
            # The whole so far, not a part.
            self._message, self._texts, self._calls = {}, {}, []
            self._add_delta(choice["message"])
        if isinstance(choice.get("delta"), dict):
            self._add_delta(choice["delta"])
        if isinstance(choice.get("text"), str):
            self._add_delta({"content": choice["text"]})
        self._add_logprobs(choice.get("logprobs"))
        for name, value in choice.items():
            # Some servers send an empty finish reason with every part.
            if name not in _OF_A_CHOICE_IN_PARTS and value not in (None, ""):
                self._rest[name] = value

    def as_whole(self, index: int) -> JsonObject:
        message = {"role": "assistant", **self._message}
        message |= {name: "".join(parts) for name, parts in self._texts.items()}
        if self._calls:
            message["tool_calls"] = [_without_index(call) for call in self._calls]
        if not message.get("content"):
            # In one piece, a message that only calls a tool has no content.
            message["content"] = None if self._calls or "refusal" in message or "content" not in message else ""
        ended = {"finish_reason": None, **self._rest}
        return {"index": index, "message": message, "logprobs": self._logprobs, **ended}

    def _add_delta(self, delta: Mapping[str, Any]) -> None:
        for name, value in delta.items():
            if value is None:
                continue
            if name in _TEXTS and isinstance(value, str):
                self._texts.setdefault(name, []).append(value)
            elif name == "tool_calls" and isinstance(value, list):
                self._add_calls(value)
            elif name == "function_call" and isinstance(value, dict):
                self._message[name] = _joined_function(self._message.get(name) or {}, value)
            elif isinstance(value, list) and isinstance(self._message.get(name), list):
                self._message[name] = self._message[name] + value
            elif name != "role" or "role" not in self._message:
                self._message[name] = value

    def _add_calls(self, parts: list[object]) -> None:
        for part in parts:
            if isinstance(part, dict):
                call = self._call_of(part)
                function = part.get("function")
                call.update({name: value for name, value in part.items() if name != "function" and value is not None})
                if isinstance(function, dict):
                    call["function"] = _joined_function(call.get("function") or {}, function)

    def _call_of(self, part: Mapping[str, Any]) -> JsonObject:
        """The call that a part belongs to: by its index, else its id, else the last one."""
        for name in ("index", "id"):
            if part.get(name) not in (None, ""):
                found = next((call for call in reversed(self._calls) if call.get(name) == part[name]), None)
                return self._new_call() if found is None or _is_another(part, found) else found
        return self._calls[-1] if self._calls else self._new_call()

    def _new_call(self) -> JsonObject:
        self._calls.append({})
        return self._calls[-1]

    def _add_logprobs(self, logprobs: object) -> None:
        if not isinstance(logprobs, dict):
            return
        if self._logprobs is None:
            self._logprobs = {}
        for name, entries in logprobs.items():
            if isinstance(entries, list):
                self._logprobs.setdefault(name, []).extend(entries)


def _is_another(part: Mapping[str, Any], call: Mapping[str, Any]) -> bool:
    """Whether a part begins a call of its own: some servers give all calls of a message the same index."""
    function = part.get("function")
    is_named = isinstance(function, dict) and bool(function.get("name"))
    return is_named and bool(part.get("id")) and bool(call.get("id")) and part["id"] != call["id"]


def _joined_function(known: JsonObject, part: Mapping[str, Any]) -> JsonObject:
    joined = dict(known)
    for name, value in part.items():
        before = joined.get(name)
        # A name that is sent with every part is not a longer name.
        is_repeated = name == "name" and before == value
        if isinstance(before, str) and isinstance(value, str) and not is_repeated:
            joined[name] = before + value
        elif value is not None:
            joined[name] = value
    return joined


def _without_index(call: JsonObject) -> JsonObject:
    return {name: value for name, value in call.items() if name != "index"}

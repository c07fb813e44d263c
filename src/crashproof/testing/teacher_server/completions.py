"""Answers in OpenAI's form, and what they cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from crashproof.testing.teacher_server.http_stub import Response
from crashproof.testing.teacher_server.questions import Question
from crashproof.testing.teacher_server.tokens import num_tokens, some_logprobs, tokens_of

__all__ = ["Choice", "Completion", "Prices", "Usage"]


class Prices(NamedTuple):
    """Dollars per million tokens."""

    prompt: Decimal
    cached_prompt: Decimal
    completion: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What is charged for."""

    prompt_tokens: int
    cached_tokens: int
    """Those of the prompt that have their own price."""
    completion_tokens: int
    reasoning_tokens: int
    """Those of the completion that were only thought."""

    def dollars(self, prices: Prices) -> Decimal:
        """The exact price."""
        fresh = prices.prompt * (self.prompt_tokens - self.cached_tokens)
        millionths = fresh + prices.cached_prompt * self.cached_tokens + prices.completion * self.completion_tokens
        return millionths.scaleb(-6)

    def as_json(self) -> dict[str, Any]:
        """The usage in OpenAI's form."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of the answers to a question."""

    message: Mapping[str, Any]
    tokens: Sequence[str]
    """Those of the message's content."""
    logprobs: Sequence[Mapping[str, Any]] | None
    """One for each token, where they were asked for."""
    finish_reason: str
    reasoning_tokens: int
    completion_tokens: int

    @classmethod
    def of(cls, said: str | Mapping[str, Any], question: Question) -> Choice:
        """Bring what a teacher said into the form, the length and the detail that were asked for."""
        told = _told(said)
        message = {"role": "assistant", "content": None, **told["message"]}
        given = (told.get("logprobs") or {}).get("content")
        tokens = [entry["token"] for entry in given] if given else tokens_of(message["content"] or "")
        thought = num_tokens([message.get("reasoning"), message.get("reasoning_content")])
        wanted = thought + len(tokens) + num_tokens(message.get("tool_calls"))
        charged = min(wanted, question.most_tokens or wanted)
        reasoning = min(thought, charged)
        if reasoning + len(tokens) > charged:
            tokens = tokens[: charged - reasoning]
            message["content"] = "".join(tokens)
        return cls(
            message=message,
            tokens=tokens,
            logprobs=_logprobs(given, tokens, question),
            finish_reason="length" if charged < wanted else told.get("finish_reason") or _usual_reason(message),
            reasoning_tokens=reasoning,
            completion_tokens=charged,
        )

    def as_json(self, index: int) -> dict[str, Any]:
        """The choice in OpenAI's form."""
        logprobs = None if self.logprobs is None else {"content": self.logprobs, "refusal": None}
        return {"index": index, "message": self.message, "logprobs": logprobs, "finish_reason": self.finish_reason}

    def deltas(self, index: int) -> Iterator[dict[str, Any]]:
        """The choice as a stream has it: the role, one token after the other, all else, the reason for the end."""
        yield _delta(index, {"role": self.message["role"], "content": ""})
        for place, token in enumerate(self.tokens):
            yield _delta(index, {"content": token}, self.logprobs[place] if self.logprobs else None)
        rest = {name: value for name, value in self.message.items() if name not in {"role", "content"}}
        if rest.get("tool_calls"):
            rest["tool_calls"] = [{"index": number, **call} for number, call in enumerate(rest["tool_calls"])]
        if rest:
            yield _delta(index, rest)
        yield _delta(index, {}) | {"finish_reason": self.finish_reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """All that was computed and charged for one request."""

    identity: str
    created: int
    model: str
    choices: Sequence[Choice]
    usage: Usage

    def response(self, question: Question, *, usage: Mapping[str, Any] | None) -> Response:
        """The answer as it was asked for, whole or as a stream, with a usage that may be wrong or, None, missing."""
        if question.is_streamed:
            lines = [json.dumps(chunk) for chunk in self._chunks(question, usage)]
            pieces = [f"data: {line}\n\n".encode() for line in [*lines, "[DONE]"]]
            return Response(content_type="text/event-stream", pieces=pieces, is_chunked=True)
        body = self._frame("chat.completion")
        body["choices"] = [choice.as_json(index) for index, choice in enumerate(self.choices)]
        if usage is not None:
            body["usage"] = usage
        return Response(pieces=(json.dumps(body).encode(),))

    def _chunks(self, question: Question, usage: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
        frame = self._frame("chat.completion.chunk")
        shows_usage = question.includes_usage and usage is not None
        unsaid = {"usage": None} if shows_usage else {}
        for index, choice in enumerate(self.choices):
            for delta in choice.deltas(index):
                yield {**frame, "choices": [delta], **unsaid}
        if shows_usage:
            yield {**frame, "choices": [], "usage": usage}

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self.identity, "object": kind, "created": self.created, "model": self.model}


def _told(said: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """What was said as the widest of the three forms: the message, its probabilities, the reason for its end."""
    if isinstance(said, str):
        return {"message": {"content": said}}
    return said if "message" in said else {"message": said}


def _logprobs(
    given: Sequence[Mapping[str, Any]] | None, tokens: Sequence[str], question: Question
) -> Sequence[Mapping[str, Any]] | None:
    if question.num_top_logprobs is None:
        return None
    if given:
        return given[: len(tokens)]
    return some_logprobs(tokens, question.request_hash, question.num_top_logprobs)


def _usual_reason(message: Mapping[str, Any]) -> str:
    return "tool_calls" if message.get("tool_calls") else "stop"


def _delta(index: int, delta: dict[str, Any], logprobs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    content = {"content": [logprobs], "refusal": None} if logprobs else None
    return {"index": index, "delta": delta, "logprobs": content, "finish_reason": None}

"""Completions in OpenAI's form."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, NamedTuple

from crashproof.rules.requests import JsonObject
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
    """The tokens that are charged."""

    prompt_tokens: int
    cached_tokens: int
    """Included in `prompt_tokens`, at their own price."""
    completion_tokens: int
    reasoning_tokens: int
    """Included in `completion_tokens`, but not visible."""

    def dollars(self, prices: Prices) -> Decimal:
        """The exact cost."""
        fresh = prices.prompt * (self.prompt_tokens - self.cached_tokens)
        millionths = fresh + prices.cached_prompt * self.cached_tokens + prices.completion * self.completion_tokens
        return millionths.scaleb(-6)

    def as_json(self) -> JsonObject:
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

    message: JsonObject
    tokens: Sequence[str]
    """The tokens of the message's content."""
    logprobs: Sequence[Mapping[str, object]] | None
    """One per token, if requested."""
    finish_reason: str
    reasoning_tokens: int
    completion_tokens: int
    error: JsonObject | None = None
    """Why it broke off."""

    @classmethod
    def of(cls, answer: str | Mapping[str, Any], question: Question) -> Choice:
        """Build a choice from an answer, with the length and the detail that were requested."""
        full = _as_full_answer(answer)
        message: JsonObject = {"role": "assistant", "content": None, **full["message"]}
        given = (full.get("logprobs") or {}).get("content")
        tokens = [entry["token"] for entry in given] if given else tokens_of(_text_in(message["content"]))
        num_thought = num_tokens([message.get("reasoning"), message.get("reasoning_content")])
        wanted = num_thought + len(tokens) + num_tokens(message.get("tool_calls"))
        charged = min(wanted, question.most_tokens or wanted)
        reasoning = min(num_thought, charged)
        if reasoning + len(tokens) > charged:
            tokens = tokens[: charged - reasoning]
            message["content"] = "".join(tokens)
        usual_reason = "tool_calls" if message.get("tool_calls") else "stop"
        return cls(
            message=message,
            tokens=tokens,
            logprobs=_logprobs(given, tokens, question),
            finish_reason="length" if charged < wanted else full.get("finish_reason") or usual_reason,
            reasoning_tokens=reasoning,
            completion_tokens=charged,
        )

    def cut(self, finish_reason: str, *, error: JsonObject | None) -> Choice:
        """The same choice, but ended in the middle; its tokens are charged all the same."""
        tokens = self.tokens[: len(self.tokens) // 2]
        return replace(
            self,
            message=self.message | {"content": "".join(tokens)},
            tokens=tokens,
            logprobs=None if self.logprobs is None else self.logprobs[: len(tokens)],
            finish_reason=finish_reason,
            error=error,
        )

    def as_json(self, index: int) -> JsonObject:
        """The choice in OpenAI's form."""
        logprobs = None if self.logprobs is None else {"content": self.logprobs, "refusal": None}
        choice = {"index": index, "message": self.message, "logprobs": logprobs, "finish_reason": self.finish_reason}
        return choice if self.error is None else choice | {"error": self.error}

    def deltas(self, index: int) -> Iterator[JsonObject]:
        """The chunks of a stream: the role, each token, everything else, the finish reason."""
        yield _delta(index, {"role": self.message["role"], "content": ""})
        for place, token in enumerate(self.tokens):
            yield _delta(index, {"content": token}, self.logprobs[place] if self.logprobs else None)
        rest: JsonObject = {name: value for name, value in self.message.items() if name not in {"role", "content"}}
        if rest.get("tool_calls"):
            rest["tool_calls"] = [{"index": number, **call} for number, call in enumerate(rest["tool_calls"])]
        if rest:
            yield _delta(index, rest)
        yield _delta(index, {}) | {"finish_reason": self.finish_reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """Everything that was computed and charged for one request."""

    identity: str
    created: int
    model: str
    choices: Sequence[Choice]
    usage: Usage
    manner_of_body: JsonObject = field(default_factory=dict)
    """What the provider adds beside the choices."""
    manner_of_choice: JsonObject = field(default_factory=dict)
    """What the provider adds beside each message."""

    def cut(self, finish_reason: str, *, error: JsonObject | None = None) -> Completion:
        """The same completion, but every choice ended in the middle."""
        return replace(self, choices=[choice.cut(finish_reason, error=error) for choice in self.choices])

    def response(self, question: Question, *, usage: Mapping[str, object] | None) -> Response:
        """The response as requested, complete or streamed; `usage` may be wrong, or None to omit it."""
        if question.is_streamed:
            lines = [json.dumps(chunk) for chunk in self._chunks(question, usage)]
            pieces = [f"data: {line}\n\n".encode() for line in [*lines, "[DONE]"]]
            return Response(content_type="text/event-stream", pieces=pieces, is_chunked=True)
        body = self._frame("chat.completion")
        body["choices"] = [choice.as_json(index) | self.manner_of_choice for index, choice in enumerate(self.choices)]
        body |= self.manner_of_body
        if usage is not None:
            body["usage"] = usage
        return Response(pieces=(json.dumps(body).encode(),))

    def _chunks(self, question: Question, usage: Mapping[str, object] | None) -> Iterator[JsonObject]:
        frame = self._frame("chat.completion.chunk")
        shows_usage = question.includes_usage and usage is not None
        no_usage = {"usage": None} if shows_usage else {}
        for index, choice in enumerate(self.choices):
            for delta in choice.deltas(index):
                yield {**frame, "choices": [delta], **no_usage}
        if shows_usage:
            yield {**frame, "choices": [], "usage": usage}

    def _frame(self, kind: str) -> JsonObject:
        return {"id": self.identity, "object": kind, "created": self.created, "model": self.model}


def _as_full_answer(answer: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """Convert an answer to its fullest form: message, logprobs, finish reason."""
    if isinstance(answer, str):
        return {"message": {"content": answer}}
    return answer if "message" in answer else {"message": answer}


def _text_in(content: object) -> str:
    """The text of a content, which may consist of parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return str(content or "")


def _logprobs(
    given: Sequence[Mapping[str, object]] | None, tokens: Sequence[str], question: Question
) -> Sequence[Mapping[str, object]] | None:
    if question.num_top_logprobs is None:
        return None
    if given:
        return given[: len(tokens)]
    return some_logprobs(tokens, question.request_hash, question.num_top_logprobs)


def _delta(index: int, delta: JsonObject, logprobs: Mapping[str, object] | None = None) -> JsonObject:
    content = {"content": [logprobs], "refusal": None} if logprobs else None
    return {"index": index, "delta": delta, "logprobs": content, "finish_reason": None}

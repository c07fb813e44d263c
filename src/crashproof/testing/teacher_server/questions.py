"""What a request asks a teacher, or why it is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crashproof.testing.teacher_server.http_stub import Response

__all__ = ["Question", "Refused", "error_response", "request_hash"]

_CHANGES_NO_ANSWER = {
    *(
        "metadata",
        "prompt_cache_key",
        "safety_identifier",
        "service_tier",
        "store",
        "stream",
        "stream_options",
        "user",
    ),
}
_MOST_TOP_LOGPROBS = 20
_MOST_CHOICES = 128


class Refused(Exception):
    """A request that no teacher answers."""

    def __init__(self, status: int, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request that can be answered."""

    body: dict[str, Any]
    request_hash: str
    model: str
    num_choices: int
    most_tokens: int | None
    """What an answer is cut at."""
    num_top_logprobs: int | None
    """None where no probabilities are asked for."""
    is_streamed: bool
    includes_usage: bool
    """Whether a stream ends with the usage."""

    @classmethod
    def read(cls, content: bytes) -> Question:
        """Understand the body of a request.

        Raises:
            Refused: it is not JSON, or asks for what nobody serves.
        """
        try:
            body = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"The body is not JSON: {error}") from None
        if not isinstance(body, dict) or not isinstance(body.get("model"), str):
            raise Refused(400, "The body is an object that names a model.")
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
            raise Refused(400, "'messages' is a list of at least one object.")
        return cls(
            body=body,
            request_hash=request_hash(body),
            model=body["model"],
            num_choices=_whole_number(body, "n", 1, _MOST_CHOICES) or 1,
            most_tokens=_whole_number(body, "max_completion_tokens", 1) or _whole_number(body, "max_tokens", 1),
            num_top_logprobs=_num_top_logprobs(body),
            is_streamed=body.get("stream") is True,
            includes_usage=_includes_usage(body),
        )


def request_hash(body: Mapping[str, Any]) -> str:
    """The SHA-256 of all in a request that may change its answer, whatever the order of its keys."""
    asked = {name: value for name, value in body.items() if name not in _CHANGES_NO_ANSWER}
    return hashlib.sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def error_response(
    status: int, message: str, *, code: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """An error in OpenAI's form."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": None, "code": code}
    return Response(status=status, headers=headers or {}, pieces=(json.dumps({"error": error}).encode(),))


def _num_top_logprobs(body: Mapping[str, Any]) -> int | None:
    num_top = _whole_number(body, "top_logprobs", 0, _MOST_TOP_LOGPROBS) or 0
    return num_top if body.get("logprobs") is True else None


def _includes_usage(body: Mapping[str, Any]) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _whole_number(body: Mapping[str, Any], name: str, least: int, most: int | None = None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        limits = f"from {least} to {most}" if most is not None else f"of at least {least}"
        raise Refused(400, f"{name!r} is a whole number {limits}, not {value!r}.")
    return value

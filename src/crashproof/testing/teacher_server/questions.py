"""Parse and validate requests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from crashproof.rules.requests import JsonObject
from crashproof.testing.teacher_server.http_stub import Response

__all__ = ["Question", "Refused", "error_response", "request_hash"]

_CANNOT_CHANGE_THE_ANSWER = {
    *("metadata", "prompt_cache_key", "safety_identifier", "service_tier"),
    *("store", "stream", "stream_options", "user"),
}
_MOST_TOP_LOGPROBS = 20
_MOST_CHOICES = 128


class Refused(Exception):
    """A request that is rejected."""

    def __init__(self, status: int, message: str, *, code: str | None = None, parameter: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.parameter = parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A valid request."""

    body: JsonObject
    request_hash: str
    model: str
    num_choices: int
    most_tokens: int | None
    """The maximum tokens of an answer."""
    num_top_logprobs: int | None
    """None if log-probabilities are not requested."""
    is_streamed: bool
    includes_usage: bool
    """Whether a stream ends with the usage."""

    @classmethod
    def read(cls, content: bytes) -> Question:
        """Parse the body of a request.

        Raises:
            Refused: it is not JSON, or not supported.
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


def request_hash(body: Mapping[str, object]) -> str:
    """SHA-256 of everything in a request that may change its answer, independent of key order."""
    asked = {name: value for name, value in body.items() if name not in _CANNOT_CHANGE_THE_ANSWER}
    return hashlib.sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def error_response(
    status: int,
    message: str,
    *,
    code: str | None = None,
    parameter: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error in OpenAI's form."""
    # A success with an error inside blames the server, too.
    kind = (
        "server_error"
        if status >= 500 or status == 200
        else "rate_limit_error"
        if status == 429
        else "invalid_request_error"
    )
    error = {"message": message, "type": kind, "param": parameter, "code": code}
    return Response(status=status, headers=headers or {}, pieces=(json.dumps({"error": error}).encode(),))


def _num_top_logprobs(body: Mapping[str, object]) -> int | None:
    num_top = _whole_number(body, "top_logprobs", 0, _MOST_TOP_LOGPROBS) or 0
    return num_top if body.get("logprobs") is True else None


def _includes_usage(body: Mapping[str, object]) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _whole_number(body: Mapping[str, object], name: str, least: int, most: int | None = None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        limits = f"from {least} to {most}" if most is not None else f"of at least {least}"
        raise Refused(400, f"{name!r} is a whole number {limits}, not {value!r}.")
    return value

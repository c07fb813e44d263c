"""Errors that are sent with a status of success."""

from __future__ import annotations

import json
from collections.abc import Mapping

from crashproof.testing.teacher_server.faults import Fault
from crashproof.testing.teacher_server.http_stub import Response

__all__ = ["ERRORS_IN_SUCCESS", "UPSTREAM_ERROR"]

_NO_TOKENS = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}

UPSTREAM_ERROR = {"code": 502, "message": "Provider returned error", "metadata": {"raw": "upstream went away"}}
"""OpenRouter's, in a choice that broke off."""

_RATE_LIMITED_CHOICE = {
    "index": 0,
    "message": {"role": "assistant", "content": ""},
    "finish_reason": "error",
    "error": {"code": 429, "message": "Rate limit exceeded upstream"},
}


def _json(content: object) -> Response:
    return Response(pieces=(json.dumps(content).encode(),))


ERRORS_IN_SUCCESS: Mapping[Fault, Response] = {
    Fault.RATE_LIMITED_IN_CHOICE: _json({"choices": [_RATE_LIMITED_CHOICE], "usage": _NO_TOKENS}),
    Fault.RATE_LIMITED_IN_BODY: _json(
        {"choices": None, "usage": _NO_TOKENS, "base_resp": {"status_code": 1002, "status_msg": "rate limit"}}
    ),
    Fault.NO_CHOICES: _json({"object": "chat.completion", "choices": [], "usage": _NO_TOKENS}),
    Fault.ERROR_TEXT: _json({"error": "The model is overloaded."}),
    Fault.ERROR_LIST: _json([{"error": {"code": 429, "message": "Quota", "status": "RESOURCE_EXHAUSTED"}}]),
    Fault.ERROR_DETAIL: _json({"detail": "The engine is not ready."}),
    Fault.NULL_BODY: _json(None),
    Fault.EMPTY_BODY: Response(pieces=()),
}
"""Nothing is computed before any of these."""

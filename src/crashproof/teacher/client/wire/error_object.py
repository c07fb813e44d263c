"""The error object of a body."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from crashproof.rules.requests import JsonObject

__all__ = ["error_object", "stated_status", "stated_words"]

_STATUS = re.compile(r"[1-5]\d\d", re.ASCII)
_LONGEST_PAGE_BYTES = 64 << 10
"""How much of a non-JSON error is read."""


def error_object(body: bytes) -> JsonObject:
    """The `error` object of a body, in OpenAI's form or similar; only a message if it has none."""
    try:
        content = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {"message": " ".join(body[:_LONGEST_PAGE_BYTES].decode("utf-8", "replace").split())}
    if isinstance(content, list) and content and isinstance(content[0], dict):
        # Gemini wraps its errors into a list.
        content = content[0]
    if not isinstance(content, dict):
        return {"message": _as_text(content)}
    error = content.get("error", content)
    if not isinstance(error, dict):
        return {"message": _as_text(error)}
    return error


def stated_status(error: Mapping[str, object]) -> int | None:
    """The HTTP status that an error object names."""
    code = str(error.get("code") or error.get("status"))
    return int(code) if _STATUS.fullmatch(code) else None


def stated_words(error: Mapping[str, object]) -> str:
    """What an error object says; empty if nothing."""
    return _as_text(error.get("message") or error.get("detail") or error.get("code") or "")


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()

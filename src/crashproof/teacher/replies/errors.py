"""Errors that a reply reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from crashproof.rules.requests import JsonObject
from crashproof.teacher.replies.choices import first_choice, has_generated
from crashproof.teacher.replies.endings import Ending, ending_of
from crashproof.teacher.replies.error_words import (
    MINIMAX_STATUSES,
    PAYMENT_REQUIRED,
    status_of_code,
    status_of_sentence,
)
from crashproof.teacher.replies.usage import PartialUsage

__all__ = ["MAY_BE_CHARGED", "RETRIED", "ReportedError", "error_in", "parse"]

RETRIED = frozenset({408, 409, 425, 429})
"""Besides every 5xx."""

MAY_BE_CHARGED = frozenset({408, 502, 504, 520, 524})
"""A proxy gave up waiting; the model may have gone on, and charged."""

_CODES = (
    *("code", "status", "status_code", "statusCode", "http_code", "http_status", "error_code", "errorCode"),
    *("type", "error_type", "reason"),
)
_MESSAGES = ("message", "msg", "detail", "status_msg", "error_msg", "errorMessage", "error_message", "description")
_WRAPPERS = ("error", "errors", "base_resp")
_LONGEST_QUOTE_BYTES = 64 << 10
"""How much of a body is read for its words; the reason is cut further."""
_SUCCESS_CODES = (None, "", 0, "0", 200, "200", False)
_FIRST_ERROR_STATUS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedError:
    """An error, whether its HTTP status says so or its body."""

    what: str
    """What came instead of an answer; empty if the HTTP status says it."""
    words: str
    """The provider's own, or its body; empty if it gives none. Not redacted."""
    status: int | None
    """The HTTP status; within a success, the status that the code inside stands for, None if for none."""
    is_permanent: bool = False
    """Whether the account is exhausted, whatever the status."""
    has_generated: bool = False
    """Whether a part of an answer came along, or tokens of one were counted."""
    is_surely_free: bool = False
    """Whether the reply itself counts no tokens."""

    @property
    def told(self) -> str:
        """What came, and the words with it."""
        return ": ".join(part for part in (self.what, self.words) if part)

    @property
    def is_retryable(self) -> bool:
        """Whether the same request may succeed later."""
        if self.is_permanent:
            return False
        return self.status is None or self.status in RETRIED or self.status >= 500

    @property
    def may_have_been_paid(self) -> bool:
        """Whether the provider may have charged for it."""
        if self.has_generated or self.status in MAY_BE_CHARGED:
            return True
        return self.status is None and not self.is_surely_free


def error_in(status: int, body: bytes) -> ReportedError | None:
    """The error that a reply reports; None if it holds something that was generated, be it damaged.

    The one place that decides what a status and a body mean together.
    """
    if status >= _FIRST_ERROR_STATUS or status < 200:
        return _error_by_status(status, body)
    content, is_json = parse(body)
    if isinstance(content, dict):
        return _error_within(content)
    if is_json:
        return _no_answer("JSON that is no answer", content)
    if body.lstrip()[:1] in (b"{", b"["):
        # A damaged answer: it is kept as it is.
        return None
    what = "a page instead of an answer" if body.strip() else "an empty body instead of an answer"
    return ReportedError(what=what, words=_page_text(body), status=None)


def parse(body: bytes) -> tuple[Any, bool]:
    """The JSON of a body, and whether it is JSON."""
    try:
        return msgspec.json.decode(body), True
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, False


def _error_by_status(status: int, body: bytes) -> ReportedError:
    content, is_json = parse(body)
    layers = _layers(content if is_json else _page_text(body))
    words = _words_of(layers) or (_quoted(content) if content else "")
    is_permanent = PAYMENT_REQUIRED in (status, *_statuses_of(layers))
    return ReportedError(what="", words=words, status=status, is_permanent=is_permanent)


def _error_within(response: JsonObject) -> ReportedError | None:
    """The error in a body that is sent with a status of success."""
    choice = first_choice(response)
    found = next((error for error in _errors_beside(response, choice) if _says_something(error)), None)
    if found is not None:
        return _as_error("an error instead of an answer", found, response)
    if choice is None:
        usage = PartialUsage.read(response)
        # Tokens without choices were paid for: such a body is kept, as an unusable answer.
        return None if usage.completion_tokens else _no_answer("no choices, and nothing generated", response)
    if ending_of(choice.get("finish_reason")) is Ending.FAILED:
        what = f"the generation broke off (finish_reason {choice['finish_reason']!r})"
        return _as_error(what, {}, response)
    return None


def _errors_beside(response: JsonObject, choice: Mapping[str, Any] | None) -> Iterator[object]:
    if choice is not None:
        yield choice.get("error")
        is_whole = ending_of(choice.get("finish_reason")).may_be_whole and has_generated(response)
        if is_whole:
            # A warning beside a complete answer.
            return
    yield response.get("error")
    yield response.get("base_resp")
    if choice is None:
        yield from (response.get(name) for name in ("errors", "detail"))
        if any(response.get(name) for name in _MESSAGES) or response.get("success") is False:
            yield response


def _no_answer(what: str, content: object) -> ReportedError:
    return _as_error(what, content, content if isinstance(content, dict) else {})


def _as_error(what: str, error: object, response: JsonObject) -> ReportedError:
    layers = _layers(error)
    words = _words_of(layers) or _quoted(response or error)
    statuses = _statuses_of(layers)
    status = next(iter(statuses), None) or status_of_sentence(words)
    completion_tokens = PartialUsage.read(response).completion_tokens
    return ReportedError(
        what=what,
        words=words,
        status=status,
        is_permanent=PAYMENT_REQUIRED in (status, *statuses),
        has_generated=has_generated(response) or bool(completion_tokens),
        is_surely_free=completion_tokens == 0,
    )


def _layers(error: object) -> list[object]:
    """An error and all that it is wrapped in, the innermost first."""
    if isinstance(error, list) and error:
        return _layers(error[0])
    if not isinstance(error, Mapping):
        return [error]
    inside = next((error[name] for name in _WRAPPERS if error.get(name)), None)
    return [error] if inside is None else [*_layers(inside), error]


def _says_something(error: object) -> bool:
    """Whether an error is one: servers also send empty ones, and codes of success."""
    if not isinstance(error, Mapping):
        return bool(error)
    codes = [error[name] for name in ("code", "status_code") if name in error]
    if codes and all(code in _SUCCESS_CODES for code in codes if not isinstance(code, list | dict)):
        return bool(_message_of(error)) and "status_msg" not in error
    return any(error.values())


def _statuses_of(layers: list[object]) -> list[int]:
    """Every status that the codes of an error stand for, the most telling first."""
    objects = [layer for layer in layers if isinstance(layer, Mapping)]
    found = [_minimax_status(layer) for layer in objects]
    found += [status_of_code(layer.get(name)) for layer in objects for name in _CODES]
    return [status for status in found if status is not None]


def _minimax_status(layer: Mapping[str, Any]) -> int | None:
    code = layer.get("status_code")
    return MINIMAX_STATUSES.get(code) if isinstance(code, int) else None


def _words_of(layers: list[object]) -> str:
    told = (_message_of(layer) if isinstance(layer, Mapping) else layer for layer in layers)
    message = next((each for each in told if each), None) or _code_of(layers)
    raw = _raw_words_of(layers)
    # A router's own message says little; the provider's is in `raw`.
    return f"{_as_text(message)} ({_as_text(raw)})" if raw else _as_text(message)


def _message_of(error: Mapping[str, Any]) -> object:
    return next((error[name] for name in _MESSAGES if error.get(name)), "")


def _code_of(layers: list[object]) -> object:
    codes = (layer.get(name) for layer in layers if isinstance(layer, Mapping) for name in ("code", "status_code"))
    return next((code for code in codes if code), "")


def _raw_words_of(layers: list[object]) -> object:
    metadata = (layer.get("metadata") for layer in layers if isinstance(layer, Mapping))
    return next((each["raw"] for each in metadata if isinstance(each, Mapping) and each.get("raw")), None)


def _quoted(content: object) -> str:
    return msgspec.json.encode(content).decode()[:_LONGEST_QUOTE_BYTES]


def _page_text(body: bytes) -> str:
    return " ".join(body[:_LONGEST_QUOTE_BYTES].decode("utf-8", "replace").split())


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()

"""The words and codes of providers' errors, as HTTP statuses."""

from __future__ import annotations

import re

__all__ = ["MINIMAX_STATUSES", "status_of_code", "status_of_sentence"]

PAYMENT_REQUIRED = 402

_CODES = {
    400: """
        bad_request content_filter content_policy_violation context_length_exceeded data_inspection_failed
        failed_precondition invalid_argument invalid_parameter invalid_prompt invalid_request invalid_request_error
        invalid_value out_of_range string_above_max_length unsupported_parameter unsupported_value validation_error
    """,
    401: "authentication_error invalid_api_key invalid_authentication invalid_authentication_error unauthenticated "
    "unauthorized",
    402: """
        arrearage billing_error billing_hard_limit_reached billing_not_active insufficient_balance
        insufficient_credits insufficient_funds insufficient_quota insufficient_user_quota payment_required
    """,
    403: "access_denied forbidden permission_denied permission_denied_error permission_error",
    404: "model_not_found not_found not_found_error",
    413: "request_too_large",
    429: """
        concurrency_limit_exceeded rate_limit rate_limit_error rate_limit_exceeded rate_limit_reached rate_limited
        requests resource_exhausted throttled throttling throttling_exception throttling_error tokens
        too_many_requests
    """,
    500: "api_error internal internal_error internal_server_error server_error",
    502: "bad_gateway provider_error upstream_error upstream_provider_error",
    503: """
        engine_overloaded engine_overloaded_error model_overloaded overloaded overloaded_error server_overloaded
        service_unavailable service_unavailable_error unavailable
    """,
    504: "deadline_exceeded gateway_timeout request_timeout timeout timeout_error",
}
"""Of Anthropic, Azure, DashScope, DeepSeek, Google, Mistral, OpenAI, OpenRouter, and gateways."""

MINIMAX_STATUSES = {
    1000: 500,
    1001: 504,
    1002: 429,
    1004: 401,
    1008: 402,
    1013: 500,
    1024: 500,
    1026: 400,
    1027: 400,
    1033: 500,
    1039: 429,
    1041: 429,
    1042: 400,
    2013: 400,
    2045: 429,
    2049: 401,
    2056: 429,
    2061: 403,
}
"""By `base_resp.status_code`."""

_SENTENCES = [
    (402, r"insufficient (account )?(balance|credit|fund|quota)|exceeded your current quota|payment required"),
    (401, r"(invalid|incorrect|missing|no) api[ -]?key|unauthori[sz]ed|not authori[sz]ed"),
    (429, r"rate[ -]?limit|too many requests|throttl|resource (has been |was )?exhausted"),
    (400, r"context (length|window)|maximum context|content (policy|filter)"),
    (503, r"overloaded|at capacity|service (is )?(temporarily )?unavailable|try again later"),
    (504, r"tim(ed|e)[ -]?out|deadline exceeded"),
    (502, r"bad gateway|upstream"),
    (500, r"internal (server )?error"),
]
"""Tried in order; for errors that give no code."""

_STATUS_OF = {word: status for status, words in _CODES.items() for word in words.split()}
_STATUS = re.compile(r"(?:http[ _/-]?)?([45]\d\d)(?:\.0)?", re.ASCII | re.IGNORECASE)


def status_of_code(code: object) -> int | None:
    """The HTTP status that a code, a type or a status stands for; None if it is none, or not known."""
    if isinstance(code, bool) or not isinstance(code, int | float | str):
        return None
    text = str(code).strip()
    found = _STATUS.fullmatch(text)
    return int(found[1]) if found else _status_of_name(text)


def status_of_sentence(sentence: str) -> int | None:
    """The HTTP status that an error's text describes; None if it describes none."""
    lowered = sentence.lower()
    return next((status for status, pattern in _SENTENCES if re.search(pattern, lowered)), None)


def _status_of_name(name: str) -> int | None:
    # RateLimitError, Throttling.RateQuota and RESOURCE_EXHAUSTED are one spelling apart.
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    words = re.sub(r"[\s-]+", "_", parted).lower()
    return _STATUS_OF.get(words) or _STATUS_OF.get(words.partition(".")[0])

"""What a provider means by a refusal.

The status alone does not say whether a retry helps, nor whether every other request would fare alike: an empty
balance comes under 400, 402, 403 and 429, a daily quota under the same 429 as a limit per minute.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from crashproof.rules.requests import JsonObject
from crashproof.teacher.replies.errors import RETRIED

__all__ = ["ALWAYS_FINAL", "Refusal", "refusal_of", "rejected_parameter"]

ALWAYS_FINAL = frozenset({301, 302, 303, 307, 308, 401, 402, 404, 405, 407})
"""Statuses that every other request would get too, whatever they say."""

_MAY_BE_FINAL = frozenset({400, 403, 422, 429})
"""Statuses whose words decide."""
_LONGEST_READ = 4096
_CODES = ("code", "type", "status", "reason")
"""Fields that hold one word."""
_HINTS = {
    401: "Check OPENAI_API_KEY.",
    402: "Check the balance of the account; every answer so far is kept.",
    403: "Check the permissions of the API key.",
    404: "Check the model name and the base URL.",
    407: "Check the user name and password of the proxy.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What to conclude from a refusal."""

    is_retryable: bool
    hits_all: bool
    """Whether every other request of this teacher would be refused for the same reason."""
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cause:
    hint: str
    codes: frozenset[str]
    """Of `code`, `type` or `status`; these decide under any status."""
    words: re.Pattern[str]


def _cause(hint: str, codes: str, *words: str) -> _Cause:
    return _Cause(hint=hint, codes=frozenset(codes.split()), words=re.compile("|".join(words), re.IGNORECASE))


_BALANCE = _cause(
    "Check the balance and the limits of the account; every answer so far is kept.",
    "insufficient_quota billing_hard_limit_reached billing_not_active insufficient_balance insufficient_user_quota "
    "insufficient_credits exceeded_current_quota_error arrearage credit_balance_too_low payment_required",
    r"insufficient[ _](?:account )?(?:balance|quota|credits?|funds)",
    r"(?:credit )?balance (?:is )?(?:too low|not enough|insufficient|exhausted|empty)",
    r"exceeded your (?:current|monthly) (?:quota|budget|spending)",
    r"requires? more credits|out of credits?|no (?:remaining )?credits? (?:left|remaining)?",
    r"(?:billing|spending|spend|usage) (?:hard |soft )?limit|billing (?:details|is not|not) ?(?:active|enabled)?",
    r"payment (?:is )?required|account is in arrears|overdue[- ]payment|quota (?:has been )?exhausted",
    "余额不足|欠费",
)
_QUOTA = _cause(
    "Start the same command again once the quota is renewed; every answer so far is kept.",
    "daily_limit_exceeded daily_quota_exceeded",
    r"(?:requests?|tokens?|limit|quota|free-models)[ _-]?per[ _-]?(?:day|month)|per(?:Day|Month)Per|PerDay\b",
    r"\((?:RPD|TPD)\)|(?:daily|monthly) (?:\w+ )?(?:limit|quota|cap|allowance)",
    r"(?:limit|quota)\b.{0,40}(?:for today|of the day|today's|24[ -]?hours?)",
)
_KEY = _cause(
    "Check OPENAI_API_KEY.",
    "invalid_api_key api_key_invalid invalid_authentication authentication_error",
    r"(?:incorrect|invalid|expired|missing|revoked|no) (?:api|access)[ _-]?(?:key|token)",
    r"api[ _-]?key (?:is )?(?:not valid|invalid|expired|not found|missing|disabled|revoked)",
)
_MODEL = _cause(
    "Check the model name and the base URL.",
    "model_not_found model_not_exist invalid_model unknown_model deploymentnotfound model_decommissioned",
    r"\bmodel\b[^.]{0,80}?(?:does not exist|not exist|not found|is not a valid|has been (?:deprecated|decommissioned|"
    r"removed|retired|shut ?down)|no longer (?:available|supported))",
    r"(?:unknown|invalid|no such) model\b|not a valid model",
)
_ACCOUNT = _cause(
    "Check the account at the provider; every answer so far is kept.",
    "account_deactivated access_terminated account_suspended account_disabled organization_restricted",
    r"(?:account|organi[sz]ation|project|key)\b[^.]{0,40}(?:deactivated|suspended|disabled|terminated|restricted|"
    r"must be verified|is blocked|has been blocked)",
)
_REGION = _cause(
    "Ask from a supported region, or another provider.",
    "unsupported_country_region_territory region_not_supported",
    r"(?:country|region|territory|location)\b[^.]{0,60}not (?:supported|available|allowed)",
    r"not (?:supported|available) in your (?:country|region|location)",
)
_VERSION = _cause(
    "Give the version in the base URL: --base-url 'https://…?api-version=…'.",
    "invalidapiversion missingapiversionparameter",
    r"(?:missing|required|unsupported|invalid)[^.]{0,40}api[- ]version",
    r"api[- ]version[^.]{0,40}(?:not|invalid|require)",
)
_CAUSES = (_KEY, _MODEL, _ACCOUNT, _REGION, _VERSION)

_IS_COMPLAINT = re.compile(
    r"not (?:be )?support|unsupported|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed|extra (?:inputs|"
    r"fields)|invalid|must be|only [^.]{0,40}(?:supported|allowed|support)|deprecated|cannot both|too large|too many|"
    r"less than|greater than|at most|maximum|exceed|no endpoints found",
    re.IGNORECASE,
)
_DEPENDS_ON_PROMPT = re.compile(
    r"context (?:length|window)|input (?:tokens|length)|prompt (?:tokens|is too long)|in the messages|too long",
    re.IGNORECASE,
)
_QUESTION = frozenset({"messages", "model"})


def refusal_of(status: int | None, error: Mapping[str, object], *, has_wait: bool = False) -> Refusal:
    """What to conclude from a status and the `error` object of a body.

    `has_wait` says whether the server named a time to wait, which an empty balance would not.
    """
    cause = _cause_of(status, error, has_wait=has_wait)
    if cause is not None:
        return Refusal(is_retryable=False, hits_all=True, hint=cause.hint)
    is_retryable = status is None or status in RETRIED or status >= 500
    return Refusal(is_retryable=is_retryable, hits_all=status in ALWAYS_FINAL, hint=_HINTS.get(status or 0, ""))


def rejected_parameter(error: Mapping[str, object], body: JsonObject) -> str | None:
    """The parameter of a request that an error complains of whatever the prompt, or None."""
    text = _text_of(error)
    named = error.get("param")
    if not _IS_COMPLAINT.search(text) or _DEPENDS_ON_PROMPT.search(text) or named in _QUESTION:
        return None
    parameters = body.keys() - _QUESTION
    if isinstance(named, str) and (base := re.split(r"[.\[]", named)[0]) in parameters:
        return base
    found = {name: text.find(name) for name in parameters if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)}
    return min(found, key=lambda name: found[name]) if found else None


def _cause_of(status: int | None, error: Mapping[str, object], *, has_wait: bool) -> _Cause | None:
    codes = {str(error.get(name)).lower() for name in _CODES}
    for cause in (_BALANCE, _QUOTA, *_CAUSES):
        if not cause.codes.isdisjoint(codes):
            return cause
    if status not in _MAY_BE_FINAL:
        return None
    text = _text_of(error)
    if _QUOTA.words.search(text):
        return _QUOTA
    if status == 429 and has_wait:
        return None
    causes = (_BALANCE,) if status == 429 else (_BALANCE, *_CAUSES)
    return next((cause for cause in causes if cause.words.search(text)), None)


def _text_of(error: Mapping[str, object]) -> str:
    """The words of an error and of its details, without the escapes of JSON in JSON."""
    said = {name: value for name, value in error.items() if name not in _CODES}
    return msgspec.json.encode(said).decode()[:_LONGEST_READ].replace("\\", "")

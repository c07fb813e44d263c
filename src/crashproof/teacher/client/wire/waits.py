"""Read how long a server asks to wait.

Said in headers (`Retry-After`, `retry-after-ms`, `x-ratelimit-reset-…`), in the details of an error, or only in the
words of its message.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

__all__ = ["parse_retry_after", "seconds_asked_for"]

_NUMBER = r"\d+(?:\.\d+)?"
_UNIT = "milliseconds?|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h|days?|d"
_PART = re.compile(rf"({_NUMBER})\s*({_UNIT})(?![a-z])")
_DURATION = rf"(?:{_NUMBER}\s*(?:{_UNIT})(?![a-z])[,\s]*(?:and\s+)?)+"
_IN_WORDS = re.compile(
    r"(?:try(?:ing)? again|retry|retry again|wait|available|reset\w*|back)\s+(?:after|in|for|at least)?\s*"
    rf"({_DURATION})",
    re.IGNORECASE,
)
_IN_DETAILS = re.compile(r'"(?:retryDelay|retry_delay|retry_after|retryAfter)"\s*:\s*"?([^",}]+)', re.IGNORECASE)
_SECONDS_PER = {"ms": 1e-3, "m": 60.0, "h": 3600.0, "d": 86400.0, "s": 1.0}
_RESET = re.compile(r"(?:x-)?(?:[a-z]+-)*ratelimit-(?:reset(?P<one>-[a-z-]+)?|(?P<other>[a-z-]+)-reset)")
_LEAST_EPOCH_SECONDS = 1e9
_LEAST_EPOCH_MILLISECONDS = 1e12
_LONGEST_READ = 4096


def seconds_asked_for(headers: Mapping[str, str], body: bytes, *, now: float) -> float | None:
    """Seconds to wait by a response, or None if it does not say; `headers` have lower-case names.

    `now` is in seconds since 1970.
    """
    milliseconds = parse_retry_after(headers.get("retry-after-ms"), now=now)
    if milliseconds is not None:
        return milliseconds / 1000
    seconds = parse_retry_after(headers.get("retry-after"), now=now)
    if seconds is None:
        seconds = _seconds_in_text(body, now=now)
    return _seconds_until_reset(headers, now=now) if seconds is None else seconds


def parse_retry_after(header: str | None, *, now: float) -> float | None:
    """Seconds to wait by a `Retry-After` header, which holds seconds or a date (RFC 9110, section 10.2.3), or None.

    Durations such as `34s` and `6m0s`, and dates in ISO form, are understood too. `now` is in seconds since 1970.
    """
    if header is None:
        return None
    text = header.strip()
    try:
        seconds: float | None = float(text)
    except ValueError:
        seconds = _seconds_of(text)
        if seconds is None:
            moment = _moment_of(text)
            seconds = None if moment is None else moment.timestamp() - now
    if seconds is None or not math.isfinite(seconds):
        return None
    return max(0.0, seconds)


def _moment_of(text: str) -> datetime | None:
    for parse in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            moment = parse(text)
        except ValueError:
            continue
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return None


def _seconds_of(text: str) -> float | None:
    """The seconds of a duration such as `6m0s`, `1h2m3.5s`, `20ms`, `26 seconds`; None if it is none."""
    parts = list(_PART.finditer(text.lower()))
    rest = re.sub(r"[,\s]|and", "", _PART.sub("", text.lower()))
    if not parts or rest:
        return None
    return sum(float(part[1]) * _seconds_per(part[2]) for part in parts)


def _seconds_per(unit: str) -> float:
    # "milliseconds" begins as "minutes" does.
    name = "ms" if unit.startswith(("ms", "milli")) else unit[0]
    return _SECONDS_PER[name]


def _seconds_in_text(body: bytes, *, now: float) -> float | None:
    text = body[:_LONGEST_READ].decode("utf-8", "replace").replace("\\", "")
    in_details = _IN_DETAILS.search(text)
    if in_details:
        return parse_retry_after(in_details[1], now=now)
    in_words = _IN_WORDS.search(text)
    return _seconds_of(in_words[1].rstrip(" ,")) if in_words else None


def _seconds_until_reset(headers: Mapping[str, str], *, now: float) -> float | None:
    """The longest wait of the limits that are used up."""
    waits = []
    for name, value in headers.items():
        reset = _RESET.fullmatch(name)
        if reset and _is_used_up(headers, name):
            waits.append(_seconds_of_reset(value, now=now))
    return max((wait for wait in waits if wait is not None), default=None)


def _is_used_up(headers: Mapping[str, str], reset: str) -> bool:
    return headers.get(reset.replace("reset", "remaining"), "").strip() in ("0", "0.0")


def _seconds_of_reset(value: str, *, now: float) -> float | None:
    seconds = parse_retry_after(value, now=now)
    if seconds is None or seconds < _LEAST_EPOCH_SECONDS:
        return seconds
    moment = seconds / 1000 if seconds >= _LEAST_EPOCH_MILLISECONDS else seconds
    return max(0.0, moment - now)

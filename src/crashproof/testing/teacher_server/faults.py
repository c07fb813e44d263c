"""Kinds and schedules of faults."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Fault", "FaultPlan", "FaultTimes", "Faults"]


class Fault(StrEnum):
    """One way in which a teacher server fails a client.

    If a fault `is_charged`, the answer was computed and is charged, whether or not it arrives.
    """

    RATE_LIMITED = "rate_limited"
    """429 without `Retry-After`."""
    RATE_LIMITED_WITH_SECONDS = "rate_limited_with_seconds"
    """429 with `Retry-After` in seconds."""
    RATE_LIMITED_WITH_DATE = "rate_limited_with_date"
    """429 with `Retry-After` as a date."""
    SERVER_ERROR = "server_error"
    """500."""
    OVERLOADED = "overloaded"
    """503."""
    REQUEST_TIMEOUT = "request_timeout"
    """408."""
    CONFLICT = "conflict"
    """409."""
    TOO_EARLY = "too_early"
    """425."""
    GATEWAY_TIMEOUT = "gateway_timeout"
    """504, charged: the gateway gave up, but not the model."""
    DROP_BEFORE = "drop_before"
    """The connection is closed; nothing was computed."""
    DROP_AFTER = "drop_after"
    """Charged; the connection is closed before the first byte."""
    DROP_MIDWAY = "drop_midway"
    """Charged; the connection is closed after half of the body."""
    STALL = "stall"
    """Charged; nothing is sent until the connection is closed after a while."""
    SLOW_BODY = "slow_body"
    """Charged; the body arrives slowly, but complete."""
    GARBAGE = "garbage"
    """200 with a proxy's HTML page; nothing was computed."""
    BROKEN_JSON = "broken_json"
    """200, charged; a truncated body with a matching length."""
    WRONG_USAGE = "wrong_usage"
    """200, charged; a good answer whose `usage` is negative, missing or zero, in turn."""
    ERROR_BODY = "error_body"
    """200 with an error and no choices; nothing was computed."""
    ERROR_TEXT = "error_text"
    """200 with an error that is a text; nothing was computed."""
    ERROR_LIST = "error_list"
    """200 with a list that holds an error, as Gemini sends it; nothing was computed."""
    ERROR_DETAIL = "error_detail"
    """200 with a `detail` alone; nothing was computed."""
    RATE_LIMITED_IN_CHOICE = "rate_limited_in_choice"
    """200 with a choice that is empty but for an error 429, as OpenRouter sends it; nothing was computed."""
    RATE_LIMITED_IN_BODY = "rate_limited_in_body"
    """200 with no choices and a `base_resp`, as MiniMax sends it; nothing was computed."""
    NO_CHOICES = "no_choices"
    """200 with an empty list of choices and no tokens; nothing was computed."""
    NULL_BODY = "null_body"
    """200 with the JSON `null`; nothing was computed."""
    EMPTY_BODY = "empty_body"
    """200 without a body; nothing was computed."""
    BROKEN_OFF = "broken_off"
    """200, charged; half of the text, with an error 502 in its choice, as OpenRouter sends it."""
    TRUNCATED = "truncated"
    """200, charged; half of the text, with the finish reason `length`."""
    FILTERED = "filtered"
    """200, charged; half of the text, with the finish reason `content_filter`."""
    RATE_LIMITED_IN_WORDS = "rate_limited_in_words"
    """429 whose message alone says how long to wait."""
    LONG_WAIT = "long_wait"
    """429 that asks to wait five hours."""
    DAILY_QUOTA = "daily_quota"
    """429: the quota of the day is used up, with a wait that does not help."""
    EMPTY_BALANCE = "empty_balance"
    """402: the account has no money left."""
    EMPTY_BALANCE_AS_400 = "empty_balance_as_400"
    """400: the account has no money left."""
    BAD_KEY_AS_400 = "bad_key_as_400"
    """400: the API key is not valid."""
    NO_MODEL_AS_400 = "no_model_as_400"
    """400: there is no such model."""
    WRONG_REGION = "wrong_region"
    """403: the country of the caller is not served."""
    STREAM_UNASKED = "stream_unasked"
    """200, charged; streamed, whether asked for or not."""
    STREAM_ODD = "stream_odd"
    """200, charged; streamed as JSON, with comments, CRLF, no space, events in parts, no end marker."""
    STREAM_OF_LINES = "stream_of_lines"
    """200, charged; streamed as JSON lines."""
    STREAM_OF_ONE = "stream_of_one"
    """200, charged; one event that holds the whole completion."""
    STREAM_CUT = "stream_cut"
    """Charged; streamed, and closed in the middle of an event."""
    STREAM_STALL = "stream_stall"
    """Charged; streamed, and silent from the middle on."""
    STREAM_ERROR = "stream_error"
    """Charged; streamed, with an error event in the middle."""

    @property
    def is_charged(self) -> bool:
        """Whether the answer was computed and charged before the fault."""
        return self in _CHARGED

    @property
    def spoils_answer(self) -> bool:
        """Whether what arrives counts as the answer, but as an unusable one: it is not requested again."""
        return self in _SPOILS_ANSWER

    @property
    def is_lasting(self) -> bool:
        """Whether the same would befall a retry."""
        return self in _LASTING

    @property
    def is_streamed(self) -> bool:
        """Whether the answer is streamed, whether asked for or not."""
        return self in _STREAMED

    @property
    def leaves_part(self) -> bool:
        """Whether a part of an answer arrives, and is not said to be whole."""
        return self in _LEAVES_PART


_STREAMED = {
    Fault.STREAM_UNASKED,
    Fault.STREAM_ODD,
    Fault.STREAM_OF_LINES,
    Fault.STREAM_OF_ONE,
    Fault.STREAM_CUT,
    Fault.STREAM_STALL,
    Fault.STREAM_ERROR,
}

_CHARGED = _STREAMED | {
    Fault.GATEWAY_TIMEOUT,
    Fault.DROP_AFTER,
    Fault.DROP_MIDWAY,
    Fault.STALL,
    Fault.SLOW_BODY,
    Fault.BROKEN_JSON,
    Fault.WRONG_USAGE,
    Fault.BROKEN_OFF,
    Fault.TRUNCATED,
    Fault.FILTERED,
}

_SPOILS_ANSWER = {Fault.BROKEN_JSON, Fault.TRUNCATED, Fault.FILTERED}

_LASTING = {
    Fault.LONG_WAIT,
    Fault.DAILY_QUOTA,
    Fault.EMPTY_BALANCE,
    Fault.EMPTY_BALANCE_AS_400,
    Fault.BAD_KEY_AS_400,
    Fault.NO_MODEL_AS_400,
    Fault.WRONG_REGION,
}

_LEAVES_PART = {Fault.STREAM_CUT, Fault.STREAM_STALL, Fault.STREAM_ERROR}


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultTimes:
    """Durations of faults."""

    retry_after_seconds: int = 1
    """The value of `Retry-After`, as seconds or as a date."""
    stall_seconds: float = 30.0
    slow_body_seconds: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Which requests fail, and how: first by the script, then at random.

    Random faults depend only on the seed, the request and its attempt number: in whatever order requests arrive, each
    meets the same faults in every run.
    """

    script: Sequence[Fault | None] = ()
    """Faults of the next requests, in order of arrival; None is a good answer."""
    seed: int = 0
    share: float = 0.0
    """Probability of a random fault per attempt, from 0 to 1."""
    kinds: Sequence[Fault] = tuple(fault for fault in Fault if not fault.is_lasting)
    """Kinds of random faults; by default all that pass."""
    most_in_a_row: int = 3
    """Maximum random faults in a row for one request; the next attempt succeeds."""
    times: FaultTimes = FaultTimes()

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be from 0 to 1, got {self.share}.")
        if self.share and not self.kinds:
            raise ValueError("Random faults need at least one kind.")

    def by_chance(self, request_hash: str, try_number: int) -> Fault | None:
        """The random fault of an attempt, before the limit `most_in_a_row`."""
        drawn = hashlib.sha256(f"{self.seed}:{request_hash}:{try_number}".encode()).digest()
        if int.from_bytes(drawn[:8]) >= self.share * 2**64:
            return None
        return self.kinds[int.from_bytes(drawn[8:16]) % len(self.kinds)]


class FaultPlan:
    """Assigns faults to requests as they arrive."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._script = iter(faults.script)
        self._tries: Counter[str] = Counter()
        self._in_a_row: Counter[str] = Counter()

    def next_for(self, request_hash: str) -> Fault | None:
        """Choose the fault of the request that has just arrived."""
        for fault in self._script:
            return fault
        try_number = self._tries[request_hash]
        self._tries[request_hash] += 1
        fault = self._faults.by_chance(request_hash, try_number)
        if fault is None or self._in_a_row[request_hash] >= self._faults.most_in_a_row:
            self._in_a_row[request_hash] = 0
            return None
        self._in_a_row[request_hash] += 1
        return fault

"""What goes wrong with a request, and when."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Fault", "FaultPlan", "FaultTimes", "Faults"]


class Fault(StrEnum):
    """One way in which a teacher's server fails a client.

    Where a fault `is_charged`, the answer was computed and costs its price, whatever of it arrives.
    """

    RATE_LIMITED = "rate_limited"
    """429, and not a word about when to come back."""
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
    """504, charged: the gateway gave up, the model did not."""
    DROP_BEFORE = "drop_before"
    """The connection is closed; nothing was computed."""
    DROP_AFTER = "drop_after"
    """Charged; the connection is closed without a byte."""
    DROP_MIDWAY = "drop_midway"
    """Charged; the connection is closed after half of the body."""
    STALL = "stall"
    """Charged; not a byte comes, and at last the connection is closed."""
    SLOW_BODY = "slow_body"
    """Charged; the body trickles, and is whole in the end."""
    GARBAGE = "garbage"
    """200 with a proxy's page in HTML; nothing was computed."""
    BROKEN_JSON = "broken_json"
    """200, charged; half of the body, sent as if it were all."""
    WRONG_USAGE = "wrong_usage"
    """200, charged; a good answer whose `usage` is negative, missing or zero, in turn."""
    ERROR_BODY = "error_body"
    """200 with an error and no choices; nothing was computed."""

    @property
    def is_charged(self) -> bool:
        """Whether the answer was computed, and is paid for, before things went wrong."""
        return self in _CHARGED


_CHARGED = {
    Fault.GATEWAY_TIMEOUT,
    Fault.DROP_AFTER,
    Fault.DROP_MIDWAY,
    Fault.STALL,
    Fault.SLOW_BODY,
    Fault.BROKEN_JSON,
    Fault.WRONG_USAGE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultTimes:
    """How long the faults take that take time."""

    retry_after_seconds: int = 1
    """What `Retry-After` says, as seconds or as a date."""
    stall_seconds: float = 30.0
    slow_body_seconds: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Which requests suffer, and from what: first those of the script, then some by chance.

    Chance is decided by the seed, the request and the number of its try, and by nothing else: however requests
    arrive, each meets the same faults in every run.
    """

    script: Sequence[Fault | None] = ()
    """What the next requests suffer, in the order of their arrival; None is a good answer."""
    seed: int = 0
    share: float = 0.0
    """How likely a try is to suffer by chance, from 0 to 1."""
    kinds: Sequence[Fault] = tuple(Fault)
    """What it may suffer by chance."""
    most_in_a_row: int = 3
    """So many tries of one request may suffer by chance; the next one is answered well."""
    times: FaultTimes = FaultTimes()

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"A share is from 0 to 1, not {self.share}.")
        if self.share and not self.kinds:
            raise ValueError("Faults by chance need kinds to choose from.")

    def by_chance(self, request_hash: str, try_number: int) -> Fault | None:
        """What a try suffers, unless it is spared for having suffered enough."""
        drawn = hashlib.sha256(f"{self.seed}:{request_hash}:{try_number}".encode()).digest()
        if int.from_bytes(drawn[:8]) >= self.share * 2**64:
            return None
        return self.kinds[int.from_bytes(drawn[8:16]) % len(self.kinds)]


class FaultPlan:
    """Faults as they strike, request by request."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._script = iter(faults.script)
        self._tries: Counter[str] = Counter()
        self._in_a_row: Counter[str] = Counter()

    def next_for(self, request_hash: str) -> Fault | None:
        """What the request that has just arrived suffers."""
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

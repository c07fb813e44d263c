"""Count requests and charges."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from decimal import Decimal
from urllib.parse import urljoin

__all__ = ["Ledger", "SeenRequest", "TeacherCounts"]

_MOST_SEEN = 10_000
_IS_SECRET = {"authorization", "proxy-authorization"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherCounts:
    """A snapshot of a server's counts."""

    requests: int
    """All POSTs, including refused ones."""
    answers_computed: int
    """All charged answers, delivered or not."""
    answers_delivered: int
    """Complete answers sent to a client that was still connected, including slow ones and ones with a wrong usage."""
    dollars: Decimal
    by_prompt: Mapping[str, int]
    """Answers computed, by `request_hash`."""
    faults: Mapping[str, int]
    """Faults injected, by kind."""
    most_at_once: int
    """The highest number of concurrent POSTs."""
    idempotency_keys: Mapping[str, int]
    """Requests, by idempotency key."""

    @classmethod
    def of(cls, base_url: str) -> TeacherCounts:
        """Fetch the counts of a server, in this process or another."""
        with urllib.request.urlopen(urljoin(base_url, "/counts")) as response:  # noqa: S310 - the caller's own server
            return cls.from_json(response.read())

    @classmethod
    def from_json(cls, content: bytes) -> TeacherCounts:
        """Parse the output of `as_json`."""
        counts = json.loads(content)
        return cls(**counts | {"dollars": Decimal(counts["dollars"])})

    def as_json(self) -> bytes:
        """The counts as JSON, with the dollars as a string."""
        return json.dumps(asdict(self) | {"dollars": str(self.dollars)}).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenRequest:
    """A request as received."""

    body: Mapping[str, object]
    headers: Mapping[str, str]
    """By lower-case name, without those that carry secrets."""


class Ledger:
    """Running counts; written by the server's thread, read by any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_in_flight = 0
        self._most_at_once = 0
        self._requests = 0
        self._delivered = 0
        self._dollars = Decimal(0)
        self._by_prompt: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._keys: Counter[str] = Counter()
        self._seen: deque[SeenRequest] = deque(maxlen=_MOST_SEEN)

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count a POST, and track that it is in flight."""
        with self._lock:
            self._requests += 1
            self._num_in_flight += 1
            self._most_at_once = max(self._most_at_once, self._num_in_flight)
        try:
            yield
        finally:
            with self._lock:
                self._num_in_flight -= 1

    def see(self, body: Mapping[str, object], headers: Mapping[str, str]) -> None:
        """Record a valid request."""
        shown = {name: value for name, value in headers.items() if name not in _IS_SECRET}
        with self._lock:
            self._seen.append(SeenRequest(body=body, headers=shown))
            if key := headers.get("idempotency-key"):
                self._keys[key] += 1

    def charge(self, request_hash: str, dollars: Decimal) -> int:
        """Count a computed answer; returns how often this request was computed so far."""
        with self._lock:
            self._dollars += dollars
            self._by_prompt[request_hash] += 1
            return self._by_prompt[request_hash]

    def deliver(self) -> None:
        """Count a delivered answer."""
        with self._lock:
            self._delivered += 1

    def strike(self, fault: str) -> int:
        """Count a fault; returns how often its kind occurred before."""
        with self._lock:
            self._faults[fault] += 1
            return self._faults[fault] - 1

    @property
    def seen(self) -> tuple[SeenRequest, ...]:
        """The last valid requests, oldest first."""
        with self._lock:
            return tuple(self._seen)

    @property
    def counts(self) -> TeacherCounts:
        """A snapshot of all counts."""
        with self._lock:
            return TeacherCounts(
                requests=self._requests,
                answers_computed=self._by_prompt.total(),
                answers_delivered=self._delivered,
                dollars=self._dollars,
                by_prompt=dict(self._by_prompt),
                faults=dict(self._faults),
                most_at_once=self._most_at_once,
                idempotency_keys=dict(self._keys),
            )

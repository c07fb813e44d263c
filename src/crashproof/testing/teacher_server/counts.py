"""What a teacher's server has been asked and paid for."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import urljoin

__all__ = ["Ledger", "SeenRequest", "TeacherCounts"]

_MOST_SEEN = 10_000
_IS_SECRET = {"authorization", "proxy-authorization"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherCounts:
    """What a server had counted at one moment."""

    requests: int
    """All POSTs, the refused ones too."""
    answers_computed: int
    """All that were charged, delivered or not."""
    answers_delivered: int
    """Whole answers that were sent to a client that was still there; slow ones, and ones with a wrong usage, too."""
    dollars: Decimal
    by_prompt: Mapping[str, int]
    """Times that an answer was computed, by `request_hash`."""
    faults: Mapping[str, int]
    """Times that a fault struck, by its kind."""
    most_at_once: int
    """The highest number of POSTs under way at one time."""
    idempotency_keys: Mapping[str, int]
    """Times that a key was seen."""

    @classmethod
    def of(cls, base_url: str) -> TeacherCounts:
        """Ask a server, in this process or another."""
        with urllib.request.urlopen(urljoin(base_url, "/counts")) as response:  # noqa: S310 - the caller's own server
            return cls.from_json(response.read())

    @classmethod
    def from_json(cls, content: bytes) -> TeacherCounts:
        """Read what `as_json` wrote."""
        counts = json.loads(content)
        return cls(**counts | {"dollars": Decimal(counts["dollars"])})

    def as_json(self) -> bytes:
        """The counts as JSON, the dollars as text."""
        return json.dumps(asdict(self) | {"dollars": str(self.dollars)}).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenRequest:
    """A request as it came."""

    body: Mapping[str, Any]
    headers: Mapping[str, str]
    """By name in lower case, without those that carry secrets."""


class Ledger:
    """Counts as they grow: written by the server's thread, read by any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_under_way = 0
        self._most_at_once = 0
        self._requests = 0
        self._delivered = 0
        self._dollars = Decimal(0)
        self._by_prompt: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._keys: Counter[str] = Counter()
        self._seen: deque[SeenRequest] = deque(maxlen=_MOST_SEEN)

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Count a POST, and that it is under way."""
        with self._lock:
            self._requests += 1
            self._num_under_way += 1
            self._most_at_once = max(self._most_at_once, self._num_under_way)
        try:
            yield
        finally:
            with self._lock:
                self._num_under_way -= 1

    def see(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        """Keep a request that was understood."""
        shown = {name: value for name, value in headers.items() if name not in _IS_SECRET}
        with self._lock:
            self._seen.append(SeenRequest(body=body, headers=shown))
            if key := headers.get("idempotency-key"):
                self._keys[key] += 1

    def charge(self, request_hash: str, dollars: Decimal) -> int:
        """Count an answer that was computed; say how often this request's has been by now."""
        with self._lock:
            self._dollars += dollars
            self._by_prompt[request_hash] += 1
            return self._by_prompt[request_hash]

    def deliver(self) -> None:
        """Count an answer that was sent."""
        with self._lock:
            self._delivered += 1

    def strike(self, fault: str) -> int:
        """Count a fault; say how often its kind struck before."""
        with self._lock:
            self._faults[fault] += 1
            return self._faults[fault] - 1

    @property
    def seen(self) -> tuple[SeenRequest, ...]:
        """The last requests that were understood, oldest first."""
        with self._lock:
            return tuple(self._seen)

    @property
    def counts(self) -> TeacherCounts:
        """All counts at this moment."""
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

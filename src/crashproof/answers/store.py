"""The interface of every answer store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Protocol

import msgspec

from crashproof.records.lines.codec import nonfinite_names
from crashproof.records.requests import AnswerRecord, Spending
from crashproof.rules.requests import JsonObject, TeacherRequest

__all__ = [
    "Answered",
    "Busy",
    "Granted",
    "Intent",
    "Lost",
    "Outcome",
    "OverBudget",
    "Refused",
    "ResponseStore",
    "Verdict",
    "request_in",
]


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """A request that the caller wants to send now."""

    request: TeacherRequest
    most: Decimal
    """Worst-case cost in US dollars."""
    replaces: bool = False
    """Whether a stored answer, if unusable, is to be replaced by a new one."""


class Granted(msgspec.Struct, frozen=True, kw_only=True):
    """Permission to send; the intent is on disk."""

    request_id: str
    request: TeacherRequest
    most: Decimal


class Busy(msgspec.Struct, frozen=True, kw_only=True):
    """The same request is in flight elsewhere; ask again after `seconds`."""

    holder: str
    seconds: float


class OverBudget(msgspec.Struct, frozen=True, kw_only=True):
    """The request could cost more than is left of the budget."""

    spending: Spending

    @property
    def may_change(self) -> bool:
        """Whether requests in flight reserve money that may be released."""
        return self.spending.reserved > 0


Verdict = AnswerRecord | Granted | Busy | OverBudget
"""A store's reply to an intent; the answer itself if it is stored."""


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """An answer arrived; it is paid for, usable or not."""

    granted: Granted
    cost: Decimal
    response: JsonObject
    raw: str | None = None
    """The body verbatim, if it is not a JSON object."""
    problem: str | None = None

    def as_record(self, *, timestamp: float, session_id: str, attempt: int) -> AnswerRecord:
        """The answer as it is stored."""
        return AnswerRecord(
            timestamp=timestamp,
            session_id=session_id,
            attempt=attempt,
            prompt_hash=self.granted.request.key,
            cost=self.cost,
            response=self.response,
            nonfinite=nonfinite_names({"response": self.response}) or msgspec.UNSET,
            request_id=self.granted.request_id,
            request=self.granted.request.as_record(),
            raw=msgspec.UNSET if self.raw is None else self.raw,
            problem=msgspec.UNSET if self.problem is None else self.problem,
        )


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """The teacher refused, or was never reached: nothing was paid."""

    granted: Granted
    reason: str


class Lost(msgspec.Struct, frozen=True, kw_only=True):
    """No answer arrived, but one may have been computed and charged."""

    granted: Granted
    reason: str


Outcome = Answered | Refused | Lost


def request_in(record: bytes) -> JsonObject | None:
    """The request in the line of a stored answer, if it has one."""
    return msgspec.json.decode(record, type=_Request).request


class ResponseStore(Protocol):
    """Stores answers durably. Every method may be called from any thread, and blocks for I/O."""

    def serve(self, key: str) -> AnswerRecord | None:
        """The answer under a key, counted as saved cost; None if there is none."""
        ...

    def read(self, key: str) -> AnswerRecord | None:
        """The same, without counting it."""
        ...

    def serve_all(self, keys: Sequence[str]) -> list[AnswerRecord | None]:
        """The same as `serve` for many keys, in their order; a database is asked once."""
        ...

    def read_all(self, keys: Sequence[str]) -> Iterator[AnswerRecord | None]:
        """The same as `read` for many keys, in their order; of the answers, one at a time is decoded."""
        ...

    def lacks(self, key: str) -> bool:
        """Whether it is known, without asking a disk or a network, that a key has no answer; False: ask."""
        ...

    def begin(self, intents: Sequence[Intent], *, budget: Decimal | None) -> list[Verdict]:
        """Request permission to send; granted intents are on disk, and their cost reserved, when this returns.

        A stored answer is returned instead, and counted as served. The budget covers everything ever spent here.

        Raises:
            DiskFull, StoreUnavailable: nothing may be sent.
        """
        ...

    def finish(self, outcomes: Sequence[Outcome]) -> None:
        """Record how requests ended; an answer survives a power loss when this returns.

        Raises:
            DiskFull, StoreUnavailable: nothing was stored; call again with the same outcomes.
        """
        ...

    def mark(self, key: str, problem: str) -> None:
        """Mark a stored answer as unusable, and why."""
        ...

    def why_miss(self, request: TeacherRequest) -> str:
        """Explain why a request has no answer here: the parameter in which the nearest stored one differs."""
        ...

    def spending(self) -> Spending:
        """What was spent here."""
        ...

    def close(self) -> None:
        """Release all resources; requests in flight elsewhere are unaffected."""
        ...


class _Request(msgspec.Struct):
    request: JsonObject | None = None

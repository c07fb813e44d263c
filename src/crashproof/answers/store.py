"""What every store of teacher answers does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

import msgspec

from crashproof.records.codec import nonfinite_names
from crashproof.records.requests import AnswerRecord, Spending
from crashproof.rules.requests import TeacherRequest

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
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """A request that somebody would like to send now."""

    request: TeacherRequest
    most: Decimal
    """The most that it can cost, in US dollars."""
    replaces: bool = False
    """Whether the answer that is there is of no use, and another one is wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """Send it: that it is about to be sent is on disk."""

    request_id: str
    request: TeacherRequest
    most: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """Somebody else is sending the same request; ask again when they may be done."""

    holder: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OverBudget:
    """It could cost more than is left."""

    spending: Spending

    @property
    def may_change(self) -> bool:
        """Whether requests under way hold money that they may not need in the end."""
        return self.spending.reserved > 0


Verdict = AnswerRecord | Granted | Busy | OverBudget
"""What a store says to an intent; an answer where it has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """An answer came: it is paid for, whatever it is worth."""

    granted: Granted
    cost: Decimal
    response: dict[str, Any]
    raw: str | None = None
    """The body to the letter, where it is no JSON object."""
    problem: str | None = None

    def as_record(self, *, timestamp: float, session_id: str, attempt: int) -> AnswerRecord:
        """What is kept of it."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The teacher said no, or was never reached: nothing was paid."""

    granted: Granted
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """No answer came, and one may have been computed."""

    granted: Granted
    reason: str


Outcome = Answered | Refused | Lost


class ResponseStore(Protocol):
    """Keeps answers for good; every method may be called from any thread, and blocks while the disk works."""

    def serve(self, key: str) -> AnswerRecord | None:
        """The answer under a key, counted as one that did not have to be paid again; None where there is none."""
        ...

    def read(self, key: str) -> AnswerRecord | None:
        """The same, not counted."""
        ...

    def begin(self, intents: Sequence[Intent], *, budget: Decimal | None) -> list[Verdict]:
        """Ask to send requests; those granted are on disk as intents, their price reserved, when this returns.

        An answer that is there already is counted as served. The budget holds for all that was ever spent here.

        Raises:
            DiskFull, StoreUnavailable: nothing may be sent.
        """
        ...

    def finish(self, outcomes: Sequence[Outcome]) -> None:
        """Say how requests ended; an answer survives a power loss when this returns.

        Raises:
            DiskFull, StoreUnavailable: none of them is kept; call again with the same.
        """
        ...

    def mark(self, key: str, problem: str) -> None:
        """Note that a kept answer cannot be used, and why."""
        ...

    def why_miss(self, request: TeacherRequest) -> str:
        """Why a request has no answer here: the parameter in which the nearest stored one differs."""
        ...

    def spending(self) -> Spending:
        """What has been paid here."""
        ...

    def close(self) -> None:
        """Let go of it; what is under way elsewhere stays as it is."""
        ...

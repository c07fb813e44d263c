"""Keep what a shared store could not take.

An answer that is paid for while the shared store is away is kept in the run's own journal, and carried over the next
time that its request is asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from decimal import Decimal

from crashproof.answers.run_store import RunResponses
from crashproof.answers.store import Answered, Granted, Intent, Outcome, ResponseStore, Verdict
from crashproof.errors import StorageError
from crashproof.records.requests import AnswerRecord, Spending
from crashproof.rules.requests import TeacherRequest

__all__ = ["SpooledStore"]

log = logging.getLogger("crashproof")


class SpooledStore:
    """A `ResponseStore` over a shared one, with the run's own behind it."""

    def __init__(self, shared: ResponseStore, *, spool: RunResponses) -> None:
        self._shared = shared
        self._spool = spool

    def serve(self, key: str) -> AnswerRecord | None:
        """See `ResponseStore`."""
        return self._shared.serve(key)

    def read(self, key: str) -> AnswerRecord | None:
        """See `ResponseStore`."""
        return self._shared.read(key)

    def begin(self, intents: Sequence[Intent], *, budget: Decimal | None) -> list[Verdict]:
        """See `ResponseStore`; what lies in the spool is carried over instead of being sent."""
        verdicts = self._shared.begin(intents, budget=budget)
        return [
            self._carried_over(verdict) if isinstance(verdict, Granted) and not intent.replaces else verdict
            for intent, verdict in zip(intents, verdicts, strict=True)
        ]

    def finish(self, outcomes: Sequence[Outcome]) -> None:
        """See `ResponseStore`; where the shared store is away, answers are kept in the run, and it is raised."""
        try:
            self._shared.finish(outcomes)
        except StorageError:
            for outcome in outcomes:
                if isinstance(outcome, Answered) and self._spool.read(outcome.granted.request.key) is None:
                    self._spool.keep_outcome(outcome)
                    log.warning("An answer is kept in the run until the shared store is back.")
            raise

    def mark(self, key: str, problem: str) -> None:
        """See `ResponseStore`."""
        self._shared.mark(key, problem)

    def why_miss(self, request: TeacherRequest) -> str:
        """See `ResponseStore`."""
        return self._shared.why_miss(request)

    def spending(self) -> Spending:
        """See `ResponseStore`."""
        return self._shared.spending()

    def close(self) -> None:
        """See `ResponseStore`."""
        self._shared.close()

    def _carried_over(self, granted: Granted) -> Verdict:
        kept = self._spool.read(granted.request.key)
        if kept is None:
            return granted
        raw = kept.raw if isinstance(kept.raw, str) else None
        problem = kept.problem if isinstance(kept.problem, str) else None
        self._shared.finish(
            [Answered(granted=granted, cost=kept.cost, response=kept.response, raw=raw, problem=problem)]
        )
        return kept

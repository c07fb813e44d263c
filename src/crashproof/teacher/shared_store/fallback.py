"""Fall back to the run's journal.

An answer that is paid for while the shared store is unavailable is stored in the run's own journal, and moved to the
shared store the next time that its request is begun.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from decimal import Decimal

from crashproof.answers.run_store import RunResponses
from crashproof.answers.store import Answered, Granted, Intent, Outcome, ResponseStore, Verdict
from crashproof.errors import StorageError
from crashproof.records.requests import AnswerRecord, Spending
from crashproof.rules.requests import TeacherRequest

__all__ = ["SpooledStore"]

log = logging.getLogger("crashproof")


class SpooledStore:
    """A shared `ResponseStore` with the run's own as a fallback."""

    def __init__(self, shared: ResponseStore, *, spool: RunResponses) -> None:
        self._shared = shared
        self._spool = spool

    def serve(self, key: str) -> AnswerRecord | None:
        """See `ResponseStore`."""
        return self._shared.serve(key)

    def read(self, key: str) -> AnswerRecord | None:
        """See `ResponseStore`."""
        return self._shared.read(key)

    def serve_all(self, keys: Sequence[str]) -> list[AnswerRecord | None]:
        """See `ResponseStore`."""
        return self._shared.serve_all(keys)

    def read_all(self, keys: Sequence[str]) -> Iterator[AnswerRecord | None]:
        """See `ResponseStore`."""
        return self._shared.read_all(keys)

    def lacks(self, key: str) -> bool:
        """See `ResponseStore`."""
        return self._shared.lacks(key)

    def begin(self, intents: Sequence[Intent], *, budget: Decimal | None) -> list[Verdict]:
        """See `ResponseStore`; answers in the spool are moved to the shared store instead of requested again."""
        verdicts = self._shared.begin(intents, budget=budget)
        return [
            self._carry_over(verdict) if isinstance(verdict, Granted) and not intent.replaces else verdict
            for intent, verdict in zip(intents, verdicts, strict=True)
        ]

    def finish(self, outcomes: Sequence[Outcome]) -> None:
        """See `ResponseStore`; if the shared store fails, answers are stored in the run, and the error is raised."""
        try:
            self._shared.finish(outcomes)
        except StorageError:
            for outcome in outcomes:
                if isinstance(outcome, Answered) and self._spool.read(outcome.granted.request.key) is None:
                    self._spool.keep_outcome(outcome)
                    log.warning("The shared store is unavailable; a paid answer was stored in the run instead.")
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

    def _carry_over(self, granted: Granted) -> Verdict:
        kept = self._spool.read(granted.request.key)
        if kept is None:
            return granted
        raw = kept.raw if isinstance(kept.raw, str) else None
        problem = kept.problem if isinstance(kept.problem, str) else None
        self._shared.finish(
            [Answered(granted=granted, cost=kept.cost, response=kept.response, raw=raw, problem=problem)]
        )
        return kept

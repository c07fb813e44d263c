"""Ways to obtain the answers of a generation job."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol

from crashproof.answers.store import ResponseStore
from crashproof.errors import BudgetExhausted
from crashproof.teacher.client.client import AsyncTeacher, OnFailure
from crashproof.teacher.client.endpoint import Endpoint
from crashproof.teacher.client.limits import Limits
from crashproof.teacher.client.prices import PriceTable
from crashproof.teacher.client.request_builder import RequestForm
from crashproof.teacher.client.retry import RetryPolicy
from crashproof.teacher.jobs.job import GenerationJob

__all__ = ["QUESTIONS_PER_REQUEST", "Engine", "EngineResult", "TeacherSettings"]

QUESTIONS_PER_REQUEST = 4
"""Open questions for each request that may be in flight, so that stored answers are looked up meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSettings:
    """How requests are sent; nothing here changes an answer."""

    endpoint: Endpoint
    prices: PriceTable
    budget: Decimal | None = None
    limits: Limits = field(default_factory=Limits)
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
    asks_again: bool = False
    """Whether to pay once more for stored answers that are unusable."""

    def open(
        self, form: RequestForm, store: ResponseStore, on_failure: OnFailure, *, keeps_truncated: bool
    ) -> AsyncTeacher:
        """Open a teacher with these settings; `form` is what all requests have in common."""
        return AsyncTeacher(
            form.model,
            parameters=form.parameters,
            store=store,
            endpoint=self.endpoint,
            prices=self.prices,
            budget=self.budget,
            limits=self.limits,
            retry_policy=self.retry_policy,
            asks_again=self.asks_again,
            keeps_truncated=keeps_truncated,
            on_failure=on_failure,
        )


@dataclass(slots=True, kw_only=True)
class EngineResult:
    """The outcome of `Engine.ask_all`."""

    reasons: MutableMapping[str, str] = field(default_factory=dict)
    """Why there is no usable answer, by key; of questions that are completed."""
    over_budget: BudgetExhausted | None = None
    """The last request that the budget did not allow."""
    is_stopped: bool = False
    """Whether the job was stopped before all questions were finished."""
    note: str = ""
    """A further sentence for the user."""


class Engine(Protocol):
    """Obtains the answers of a job."""

    def ask_all(
        self,
        job: GenerationJob,
        store: ResponseStore,
        *,
        reasons: MutableMapping[str, str],
        on_end: Callable[[int], None],
    ) -> EngineResult:
        """Obtain an answer to every question into the store.

        Questions beyond the budget do not count as finished: a larger budget continues there.

        Args:
            job: The questions. Of a million of them only those being asked may be in memory.
            store: Where the answers go.
            reasons: Takes, by key, why a question has no usable answer, as soon as it is completed: the output that
                grows meanwhile passes over it.
            on_end: Gets the number of finished questions.

        Raises:
            TeacherError: no question can be answered.
            DiskFull, StoreUnavailable: paid answers are stored, but no further one can be.
        """
        ...

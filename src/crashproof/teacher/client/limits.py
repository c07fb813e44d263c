"""Limit concurrency and request rate."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

__all__ = ["Gate", "Limits"]

_SECONDS_A_MINUTE = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits that the client enforces itself."""

    concurrency: int = 16
    """Maximum requests in flight; lowered after a 429 or 503."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Prompts and answers together; estimated until the usage is known."""


class Gate:
    """Admits requests; for one event loop.

    Concurrency follows additive increase and multiplicative decrease (Chiu & Jain 1989): one more for each round of
    answers, half for an overload. Requests that were already in flight when it was halved do not halve it again.
    """

    def __init__(self, limits: Limits, *, steady: Callable[[], float]) -> None:
        self._most = float(limits.concurrency)
        self._allowed = self._most
        self._steady = steady
        self._halved_at = -math.inf
        self._held_until = -math.inf
        self._num_inside = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._requests = _Window(limits.requests_per_minute, steady)
        self._tokens = _Window(limits.tokens_per_minute, steady)

    @property
    def allowed(self) -> int:
        """Requests that may be in flight now."""
        return max(1, int(self._allowed))

    @property
    def counts_tokens(self) -> bool:
        """Whether tokens are limited at all, so that they need not be estimated otherwise."""
        return self._tokens.most is not None

    def change(self, limits: Limits) -> None:
        """Apply other numbers of the same limits; what an overload has lowered stays as low in proportion."""
        share = self._allowed / self._most
        self._most = float(limits.concurrency)
        self._allowed = max(1.0, share * self._most)
        self._requests.most = limits.requests_per_minute
        self._tokens.most = limits.tokens_per_minute
        self._let_in()

    @asynccontextmanager
    async def place(self, *, tokens: int) -> AsyncIterator[Place]:
        """Wait for a slot; `tokens` is the estimate for the limit per minute."""
        await self._enter()
        try:
            while (seconds := self._held_until - self._steady()) > 0:
                await asyncio.sleep(seconds)
            await self._requests.take(1)
            taken = await self._tokens.take(tokens)
            yield Place(entered_at=self._steady(), taken=taken)
        finally:
            self._num_inside -= 1
            self._let_in()

    def note_answer(self) -> None:
        """Raise the concurrency a little after an answer."""
        self._allowed = min(self._most, self._allowed + 1.0 / self._allowed)
        self._let_in()

    def note_overload(self, place: Place) -> None:
        """Halve the concurrency after an overload of the server."""
        if place.entered_at > self._halved_at:
            self._allowed = max(1.0, self._allowed / 2)
            self._halved_at = self._steady()

    def hold(self, seconds: float) -> None:
        """Admit nobody for a while: a server's wait concerns all requests."""
        self._held_until = max(self._held_until, self._steady() + seconds)

    async def _enter(self) -> None:
        if self._num_inside < self.allowed and not self._waiting:
            self._num_inside += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._num_inside -= 1
                self._let_in()
            raise

    def _let_in(self) -> None:
        while self._waiting and self._num_inside < self.allowed:
            turn = self._waiting.popleft()
            if not turn.done():
                self._num_inside += 1
                turn.set_result(None)


@dataclass(slots=True)
class _Taken:
    at: float
    amount: int


@dataclass(slots=True, kw_only=True)
class Place:
    """One admitted request."""

    entered_at: float
    taken: _Taken

    def used(self, tokens: int) -> None:
        """Replace the estimate by the actual number of tokens."""
        self.taken.amount = tokens


class _Window:
    """At most an amount within any minute; a request above the whole amount goes alone."""

    def __init__(self, most: int | None, steady: Callable[[], float]) -> None:
        self.most = most
        self._steady = steady
        self._taken: deque[_Taken] = deque()
        self._turn = asyncio.Lock()

    async def take(self, amount: int) -> _Taken:
        taken = _Taken(self._steady(), amount)
        if self.most is None:
            return taken
        async with self._turn:
            while (seconds := self._seconds_until_free(amount)) > 0:
                await asyncio.sleep(seconds)
            taken.at = self._steady()
            self._taken.append(taken)
        return taken

    def _seconds_until_free(self, amount: int) -> float:
        assert self.most is not None
        now = self._steady()
        while self._taken and self._taken[0].at <= now - _SECONDS_A_MINUTE:
            self._taken.popleft()
        excess = sum(each.amount for each in self._taken) + amount - self.most
        for each in self._taken:
            if excess <= 0:
                break
            excess -= each.amount
            if excess <= 0 or each is self._taken[-1]:
                return max(1e-3, each.at + _SECONDS_A_MINUTE - now)
        return 0.0

"""An asker on another machine, as its driver sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.errors import CrashproofError
from crashproof.teacher.client.limits import Limits
from crashproof.teacher.jobs.engine import QUESTIONS_PER_REQUEST
from crashproof.teacher.jobs.ray_cluster.asker import AskerSetup, Ended, News, Opened, Row
from crashproof.teacher.jobs.ray_cluster.cluster import Actor, ActorDied, ActorOutOfReach, Machine
from crashproof.teacher.jobs.ray_cluster.hidden import Hidden

__all__ = ["RemoteAsker"]

_NEWS_SECONDS = 1.0
"""How long a call waits for news."""
_OUT_OF_REACH_SECONDS = 60.0
"""How long an asker may be out of reach before it counts as dead: Ray takes a while to tell."""
_SECONDS_BETWEEN_TRIES = 0.5


class RemoteAsker:
    """One asker on one machine, and the questions that it has.

    Every method that waits raises `ActorDied` once it has to be replaced.
    """

    def __init__(self, machine: Machine, actor: Actor, *, clock: Clock = SYSTEM_CLOCK) -> None:
        """Use an actor that was started from `Asker`."""
        self.machine = machine
        self.rows: dict[int, Row] = {}
        """Its open questions, by number."""
        self.has_ended_any = False
        """Whether a question has ended there."""
        self._actor = actor
        self._clock = clock
        self._limits = Limits(concurrency=1)
        self._num_begun = 0
        self._num_received = 0

    @property
    def num_wanted(self) -> int:
        """How many more questions it has room for."""
        return max(0, QUESTIONS_PER_REQUEST * self._limits.concurrency - len(self.rows))

    async def open(self, setup: AskerSetup) -> Opened:
        """Wait for its process, and set it up.

        Raises:
            CrashproofError: the machine cannot do it.
        """
        opened: Opened | CrashproofError = await self._call("open", Hidden(setup))
        if isinstance(opened, CrashproofError):
            raise opened
        return opened

    async def exchange(self, rows: Sequence[Row]) -> list[News]:
        """Hand over questions, and return what is new; waits for that a little."""
        questions = list(enumerate(rows, start=self._num_begun))
        self._num_begun += len(rows)
        self.rows.update(questions)
        wait_seconds = _NEWS_SECONDS if self.rows else _NEWS_SECONDS / 4
        news: list[News] = await self._call(
            "exchange", questions, num_received=self._num_received, wait_seconds=wait_seconds
        )
        self._num_received += len(news)
        self.has_ended_any = self.has_ended_any or any(isinstance(each, Ended) for each in news)
        return news

    def limit(self, limits: Limits) -> None:
        """Give it another part of the job's limits."""
        self._limits = limits
        self._actor.send("limit", limits)

    def stop(self, *, waits: bool) -> None:
        """See `Asker.stop`; its questions end one by one, so that `exchange` reports them."""
        self._actor.send("stop", waits=waits)

    async def close(self) -> None:
        """See `Asker.close`."""
        await self._call("close")

    def kill(self) -> None:
        """End its process; what it has in flight is in doubt."""
        self._actor.kill()

    async def _call(self, method: str, *arguments: object, **named: object) -> Any:
        """Call it, as often as it takes to know that it was obeyed."""
        deadline = self._clock.steady() + _OUT_OF_REACH_SECONDS
        while True:
            try:
                return await self._actor.call(method, *arguments, **named)
            except ActorOutOfReach as error:
                if self._clock.steady() >= deadline:
                    raise ActorDied("it has been out of reach for a minute") from error
                await asyncio.sleep(_SECONDS_BETWEEN_TRIES)

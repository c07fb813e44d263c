"""An asker on another machine, as its driver sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from crashproof.errors import CrashproofError
from crashproof.teacher.client.limits import Limits
from crashproof.teacher.jobs.engine import QUESTIONS_PER_REQUEST
from crashproof.teacher.jobs.ray_cluster.asker import Asker, AskerSetup, Ended, News, Opened, Row
from crashproof.teacher.jobs.ray_cluster.cluster import Machine
from crashproof.teacher.jobs.ray_cluster.sealed import Sealed

__all__ = ["CPUS_OF_ASKER", "AskerLost", "RemoteAsker"]

CPUS_OF_ASKER = 0.01
"""It waits for the network; this much is reserved, so that a machine may also do other work."""
_IDLE_SECONDS = 1.0
"""How long a call waits for news."""
_UNAVAILABLE_SECONDS = 60.0
"""How long an asker may be out of reach before it counts as lost: Ray takes a while to declare a machine dead."""
_SECONDS_BETWEEN_TRIES = 0.5
_WHY_LOST = {
    "OutOfMemory": "it was killed for want of memory",
    "out of memory": "it was killed for want of memory",
    "node has died": "its machine left the cluster",
    "node was": "its machine left the cluster",
    "ActorUnschedulable": "its machine left the cluster",
}


class AskerLost(Exception):
    """The asker is dead or out of reach; what it was asked may have been sent."""


class RemoteAsker:
    """One asker on one machine, and the questions that it has."""

    def __init__(self, machine: Machine) -> None:
        """Start its process there; `open` waits for it."""
        self.machine = machine
        self.rows: dict[int, Row] = {}
        """Its open questions, by number."""
        self.has_ended_any = False
        self._limits = Limits(concurrency=1)
        self._num_begun = 0
        self._num_received = 0
        self._actor: Any = (
            ray.remote(Asker)
            .options(
                num_cpus=CPUS_OF_ASKER,
                max_restarts=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(machine.node_id, soft=False),
            )
            .remote()
        )

    @property
    def num_wanted(self) -> int:
        """How many more questions it has room for."""
        return max(0, QUESTIONS_PER_REQUEST * self._limits.concurrency - len(self.rows))

    async def open(self, setup: AskerSetup) -> Opened:
        """Wait for its process, and set it up.

        Raises:
            AskerLost: its process died.
            CrashproofError: the machine cannot do it.
        """
        opened: Opened | CrashproofError = await self._call("open", Sealed(setup))
        if isinstance(opened, CrashproofError):
            raise opened
        return opened

    async def exchange(self, rows: Sequence[Row]) -> list[News]:
        """Hand over questions, and return what is new; waits for that a little.

        Raises:
            AskerLost: it has to be replaced.
        """
        questions = list(enumerate(rows, start=self._num_begun))
        self._num_begun += len(rows)
        self.rows.update(questions)
        wait_seconds = _IDLE_SECONDS if self.rows else _IDLE_SECONDS / 4
        news: list[News] = await self._call(
            "exchange", questions, num_received=self._num_received, wait_seconds=wait_seconds
        )
        self._num_received += len(news)
        self.has_ended_any = self.has_ended_any or any(isinstance(each, Ended) for each in news)
        return news

    def limit(self, limits: Limits) -> None:
        """Give it another part of the job's limits."""
        self._limits = limits
        self._actor.limit.remote(limits)

    def stop(self, *, waits: bool) -> None:
        """See `Asker.stop`; its questions end one by one, so that `exchange` reports them."""
        self._actor.stop.remote(waits=waits)

    async def close(self) -> None:
        """See `Asker.close`.

        Raises:
            AskerLost: it died before.
        """
        await self._call("close")

    def kill(self) -> None:
        """End its process; what it has in flight is in doubt."""
        ray.kill(self._actor)

    async def _call(self, method: str, *arguments: object, **named: object) -> Any:
        """Call it, as often as it takes to know that it was obeyed."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _UNAVAILABLE_SECONDS
        while True:
            try:
                return await getattr(self._actor, method).remote(*arguments, **named)
            except ActorUnavailableError as error:
                if loop.time() >= deadline:
                    raise AskerLost("it has been out of reach for a minute") from error
                await asyncio.sleep(_SECONDS_BETWEEN_TRIES)
            except RayError as error:
                raise AskerLost(_why_lost(error)) from error


def _why_lost(error: RayError) -> str:
    text = f"{type(error).__name__} {error}"
    return next((why for sign, why in _WHY_LOST.items() if sign in text), "its process died")

"""A cluster whose machines are objects of this process."""

from __future__ import annotations

import asyncio
import pickle
from collections import Counter
from typing import Any

from crashproof.errors import ConfigError
from crashproof.teacher.jobs.ray_cluster.cluster import ActorDied, ActorOutOfReach, Machine


class FakeActor:
    """Calls are pickled on their way, and so is what they return; a killed one lives on, out of reach for good."""

    def __init__(self, kind: type, machine: Machine, cluster: FakeCluster) -> None:
        self.object = kind()
        self.machine = machine
        self.calls: Counter[str] = Counter()
        self.sent: list[tuple[str, tuple[object, ...], dict[str, object]]] = []
        self.num_broken_calls = 0
        """So many of the next calls are obeyed, and their connection breaks then."""
        self.results: dict[str, object] = {}
        """What methods return in place of what they would."""
        self._cluster = cluster
        self._death = asyncio.Event()
        self._tasks: set[asyncio.Task[object]] = set()

    @property
    def is_dead(self) -> bool:
        return self._death.is_set()

    async def call(self, method: str, *arguments: object, **named: object) -> Any:
        self.calls[method] += 1
        calling = asyncio.create_task(self._obey(method, arguments, named))
        dying = asyncio.create_task(self._death.wait())
        await asyncio.wait({calling, dying}, return_when=asyncio.FIRST_COMPLETED)
        dying.cancel()
        if self.is_dead:
            calling.cancel()
            raise ActorDied("its process died")
        result = await calling
        if self.num_broken_calls:
            self.num_broken_calls -= 1
            raise ActorOutOfReach
        return pickle.loads(pickle.dumps(self.results.get(method, result)))

    def send(self, method: str, *arguments: object, **named: object) -> None:
        self.sent.append((method, arguments, named))
        task: asyncio.Task[object] = asyncio.create_task(self._obey(method, arguments, named))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def kill(self) -> None:
        self._death.set()
        self._cluster.alive.pop(self.machine.node_id, None)

    async def _obey(self, method: str, arguments: tuple[object, ...], named: dict[str, object]) -> Any:
        if self._cluster.num_free_cpus <= 0:
            await self._death.wait()
        arguments, named = pickle.loads(pickle.dumps((arguments, named)))
        return await getattr(self.object, method)(*arguments, **named)


class FakeCluster:
    """Its machines are added and killed by name."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.num_free_cpus = 1.0
        self.num_started: Counter[str] = Counter()
        """Actors, by machine."""
        self.alive: dict[str, FakeActor] = {}
        """Actors by machine."""
        self.all: list[FakeActor] = []
        self.is_joined = False
        self.refusal: ConfigError | None = None

    async def join(self) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.is_joined = True

    async def leave(self) -> None:
        self.is_joined = False
        for actor in self.all:
            await actor.object.close()

    async def machines(self) -> list[Machine]:
        return sorted(Machine(name=name, node_id=name) for name in self.names)

    async def cpus_in_use(self) -> tuple[float, float]:
        return 4.0 - self.num_free_cpus, 4.0

    def start(self, kind: type, machine: Machine, *, num_cpus: float) -> FakeActor:
        assert 0 < num_cpus <= 0.1
        self.num_started[machine.name] += 1
        self.alive[machine.node_id] = actor = FakeActor(kind, machine, self)
        self.all.append(actor)
        return actor

    def kill_machine(self, name: str) -> None:
        self.names.remove(name)
        if name in self.alive:
            self.alive[name].kill()

"""What a job needs of a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Actor", "ActorDied", "ActorOutOfReach", "ActorUnfit", "Cluster", "Machine"]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Machine:
    """A machine of the cluster that has CPUs."""

    name: str
    """Its address."""
    node_id: str
    """Not used again when a machine leaves and joins anew."""


class ActorDied(Exception):
    """Its process, or its machine, is gone; the message says which."""


class ActorUnfit(ActorDied):
    """Its class cannot be loaded on its machine, where every other one would die likewise."""


class ActorOutOfReach(Exception):
    """No connection to it; a call may have been obeyed or not."""


class Actor(Protocol):
    """An object in a process of its own, on some machine."""

    async def call(self, method: str, *arguments: object, **named: object) -> Any:
        """Call an async method, and wait for what it returns.

        Raises:
            ActorDied, ActorOutOfReach: it cannot be called.
        """
        ...

    def send(self, method: str, *arguments: object, **named: object) -> None:
        """Call an async method, and do not wait."""
        ...

    def kill(self) -> None:
        """End its process."""
        ...


class Cluster(Protocol):
    """The machines that a job may ask from."""

    async def join(self) -> None:
        """Connect to it.

        Raises:
            ConfigError: none is running, or it does not fit this process.
        """
        ...

    async def leave(self) -> None:
        """Disconnect; what was started there for this process ends."""
        ...

    async def machines(self) -> list[Machine]:
        """The live machines with CPUs, sorted."""
        ...

    async def cpus_in_use(self) -> tuple[float, float]:
        """How many CPUs of all machines are reserved, and how many there are."""
        ...

    def start(self, kind: type, machine: Machine, *, num_cpus: float) -> Actor:
        """Start an actor of a class on a machine, as soon as so many of its CPUs are free."""
        ...

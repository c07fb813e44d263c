"""The Ray cluster that is running."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from crashproof.errors import ConfigError
from crashproof.teacher.jobs.ray_cluster.cluster import ActorDied, ActorOutOfReach, ActorUnfit, Machine
from crashproof.teacher.jobs.ray_cluster.in_thread import in_thread

__all__ = ["RunningRay"]

_CONNECT_SECONDS = 10.0
_JOIN_SECONDS = 120.0
_LEAVE_SECONDS = 10.0
_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")
_IS_CLIENT = "://"
_CANNOT_LOAD = "failed to import on the worker"
_OUT_OF_MEMORY = "it was killed for want of memory"
_MACHINE_LEFT = "its machine left the cluster"
_WHY_DIED = {
    "OutOfMemory": _OUT_OF_MEMORY,
    "out of memory": _OUT_OF_MEMORY,
    "node has died": _MACHINE_LEFT,
    "Unschedulable": _MACHINE_LEFT,
}


class RunningRay:
    """The cluster of `RAY_ADDRESS`, or else of this machine."""

    async def join(self) -> None:
        """See `Cluster`."""
        address = os.environ.get("RAY_ADDRESS", "")
        if _IS_CLIENT in address:
            raise ConfigError(
                f"RAY_ADDRESS is {address}, the address of a server for Ray clients.",
                hint="Start the job on a machine of the cluster, with RAY_ADDRESS=HOST:6379.",
            )
        try:
            # Not by the main thread, where Ray replaces the handler of SIGTERM.
            await asyncio.wait_for(in_thread(lambda: _connect(address)), _JOIN_SECONDS)
        except (ConnectionError, TimeoutError, socket.gaierror) as error:
            where = f" at {address}" if address else ""
            raise ConfigError(
                f"No Ray cluster is running{where}.", hint="Start one (`ray start --head`), or set RAY_ADDRESS."
            ) from error
        except (RuntimeError, ValueError) as error:
            raise _refused(str(error)) from error

    async def leave(self) -> None:
        """See `Cluster`."""
        # Without its head, the cluster does not let go; this process ends anyway.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(in_thread(ray.shutdown), _LEAVE_SECONDS)

    async def machines(self) -> list[Machine]:
        """See `Cluster`."""
        nodes: list[dict[str, Any]] = await in_thread(ray.nodes)
        return sorted(
            Machine(name=str(node["NodeManagerAddress"]), node_id=str(node["NodeID"]))
            for node in nodes
            if node["Alive"] and node["Resources"].get("CPU")
        )

    async def cpus_in_use(self) -> tuple[float, float]:
        """See `Cluster`."""
        total = (await in_thread(ray.cluster_resources)).get("CPU", 0.0)
        free = (await in_thread(ray.available_resources)).get("CPU", 0.0)
        return total - free, total

    def start(self, kind: type, machine: Machine, *, num_cpus: float) -> _RayActor:
        """See `Cluster`."""
        place = NodeAffinitySchedulingStrategy(machine.node_id, soft=False)
        # Whoever has lost one decides about another.
        remote: Any = ray.remote(kind)
        options = remote.options(num_cpus=num_cpus, max_restarts=0, scheduling_strategy=place)
        return _RayActor(options.remote())


class _RayActor:
    """An `Actor`."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def call(self, method: str, *arguments: object, **named: object) -> Any:
        """See `Actor`."""
        try:
            return await getattr(self._handle, method).remote(*arguments, **named)
        except ActorUnavailableError as error:
            raise ActorOutOfReach(str(error)) from error
        except RayError as error:
            raise _death(error) from error

    def send(self, method: str, *arguments: object, **named: object) -> None:
        """See `Actor`."""
        getattr(self._handle, method).remote(*arguments, **named)

    def kill(self) -> None:
        """See `Actor`."""
        ray.kill(self._handle)


def _connect(address: str) -> None:
    _check_reachable(address)
    # What workers print stays in the logs of the cluster.
    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)


def _check_reachable(address: str) -> None:
    """Fail at once if nothing listens there: Ray itself waits for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()


def _refused(reason: str) -> ConfigError:
    versions = _VERSIONS.findall(reason)
    if len(versions) != 2:
        return ConfigError(f"The Ray cluster cannot be joined: {' '.join(reason.split())}.")
    (theirs, their_python), (ours, our_python) = versions
    return ConfigError(
        f"The cluster runs Ray {theirs} on Python {their_python}, and this job Ray {ours} on Python {our_python}.",
        hint=f"Start the job with the cluster's versions: Python {their_python}, and `pip install ray=={theirs}`.",
    )


def _death(error: RayError) -> ActorDied:
    if isinstance(error, RayTaskError):
        return ActorDied(f"it failed ({type(error.cause).__name__}: {' '.join(str(error.cause).split())})")
    text = f"{type(error).__name__} {error}".strip()
    if _CANNOT_LOAD in text:
        return ActorUnfit(f"crashproof[ray] cannot be loaded there ({text.splitlines()[-1]})")
    return ActorDied(next((why for sign, why in _WHY_DIED.items() if sign in text), "its process died"))

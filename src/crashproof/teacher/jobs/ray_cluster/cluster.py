"""The Ray cluster that a job asks from."""

from __future__ import annotations

import logging
import os
import re
import socket
from dataclasses import dataclass
from typing import Any

import ray

from crashproof.errors import ConfigError
from crashproof.teacher.jobs.ray_cluster.in_thread import in_thread

__all__ = ["Machine", "cpus_in_use", "join", "leave", "machines"]

_CONNECT_SECONDS = 10.0
_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")
_IS_CLIENT = "://"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Machine:
    """A machine of the cluster that has CPUs."""

    name: str
    """Its address."""
    node_id: str


async def join() -> None:
    """Connect to the running cluster of `RAY_ADDRESS`, or else of this machine.

    Raises:
        ConfigError: there is none, or it does not fit this process.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if _IS_CLIENT in address:
        raise ConfigError(
            f"RAY_ADDRESS is {address}, the address of a server for Ray clients.",
            hint="Start the job on a machine of the cluster, with RAY_ADDRESS=HOST:6379.",
        )
    try:
        # Not by the main thread, where Ray replaces the handler of SIGTERM.
        await in_thread(lambda: _connect(address))
    except (ConnectionError, TimeoutError, socket.gaierror) as error:
        where = f" at {address}" if address else ""
        raise ConfigError(
            f"No Ray cluster is running{where}.", hint="Start one (`ray start --head`), or set RAY_ADDRESS."
        ) from error
    except (RuntimeError, ValueError) as error:
        raise _refused(str(error)) from error


async def leave() -> None:
    """Disconnect; what was started there for this process ends."""
    await in_thread(ray.shutdown)


async def machines() -> list[Machine]:
    """The live machines with CPUs, sorted."""
    nodes: list[dict[str, Any]] = await in_thread(ray.nodes)
    return sorted(
        Machine(name=str(node["NodeManagerAddress"]), node_id=str(node["NodeID"]))
        for node in nodes
        if node["Alive"] and node["Resources"].get("CPU")
    )


async def cpus_in_use() -> tuple[float, float]:
    """How many CPUs of the cluster are reserved, and how many it has."""
    total = (await in_thread(ray.cluster_resources)).get("CPU", 0.0)
    free = (await in_thread(ray.available_resources)).get("CPU", 0.0)
    return total - free, total


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

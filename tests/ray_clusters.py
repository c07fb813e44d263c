"""A Ray cluster of several nodes on this machine, each of which can be added and killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Self

import psutil

_PROGRAM = """
import sys
from ray.cluster_utils import Cluster
small = {"object_store_memory": 80 << 20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
print(cluster.address, flush=True)
nodes = []
for line in sys.stdin:
    command, number = line.split()
    if command == "add":
        nodes.append(cluster.add_node(num_cpus=float(number), **small))
    if command == "kill":
        nodes[int(number)].kill_raylet()
    print("done", flush=True)
cluster.shutdown()
"""


class RayCluster:
    """Its head has no CPUs; nodes are counted from 0 as they are added."""

    def __init__(self) -> None:
        # Whatever else this machine runs belongs to other clusters.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1", "RAY_USAGE_STATS_ENABLED": "0"},
        )
        self.address = self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def add_node(self, num_cpus: float = 1) -> None:
        """Waits until it has joined."""
        self._ask(f"add {num_cpus}")

    def kill_node(self, number: int) -> None:
        """As a machine dies: its raylet is killed, and its workers with it."""
        self._ask(f"kill {number}")

    def askers(self) -> list[psutil.Process]:
        """The processes of all askers."""
        everything = psutil.Process(self._process.pid).children(recursive=True)
        return [process for process in everything if _title(process).startswith("ray::Asker")]

    def _ask(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        assert "done" == self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            _, told = self._process.communicate(timeout=60)
            raise AssertionError(told)
        return line


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def wait_until(is_true: Callable[[], object], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)

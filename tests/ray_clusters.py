"""A Ray cluster of several nodes on this machine, each of which can be added and killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import psutil

_PROGRAM = """
import json, sys
from ray.cluster_utils import Cluster

small = {"object_store_memory": 80 << 20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
print(json.dumps({"address": cluster.address, "logs": cluster.head_node.get_session_dir_path()}), flush=True)
nodes = []
for line in sys.stdin:
    command = json.loads(line)
    if command["do"] == "add":
        nodes.append(cluster.add_node(num_cpus=command["cpus"], env_vars=command["environment"] or None, **small))
    if command["do"] == "kill":
        nodes[command["number"]].kill_raylet()
    if command["do"] == "kill head":
        cluster.head_node.kill_gcs_server()
    if command["do"] == "claim":
        client = cluster.head_node.get_gcs_client()
        about = json.loads(client.internal_kv_get(b"CLUSTER_METADATA", b"cluster")) | command["versions"]
        client.internal_kv_put(b"CLUSTER_METADATA", json.dumps(about).encode(), True, b"cluster")
    jobs = repr(cluster.head_node.get_gcs_client().get_all_job_info()) if command["do"] == "jobs" else ""
    print(json.dumps({"jobs": jobs}), flush=True)
cluster.shutdown()
"""


class RayCluster:
    """Its head has no CPUs; nodes are counted from 0 as they are added."""

    def __init__(self) -> None:
        # Not `ray start`, which `ray stop` would end with all other clusters of this machine.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1", "RAY_USAGE_STATS_ENABLED": "0"},
        )
        about = self._read()
        self.address = about["address"]
        self.logs = Path(about["logs"])
        """The folder with all that the cluster logs."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._process.communicate(timeout=60)
        finally:
            self._process.kill()

    def add_node(self, num_cpus: float = 1, *, environment: Mapping[str, str] | None = None) -> None:
        """Wait until it has joined."""
        self._ask({"do": "add", "cpus": num_cpus, "environment": environment})

    def kill_node(self, number: int) -> None:
        """As a machine dies: its raylet is killed, and its workers with it."""
        self._ask({"do": "kill", "number": number})

    def kill_head(self) -> None:
        """Kill the server that knows the cluster."""
        self._ask({"do": "kill head"})

    def claim(self, **versions: str) -> None:
        """Have the cluster say that it was started with other versions: `ray_version`, `python_version`."""
        self._ask({"do": "claim", "versions": versions})

    def jobs(self) -> str:
        """What the cluster tells about all its jobs."""
        return self._ask({"do": "jobs"})["jobs"]

    def askers(self) -> list[psutil.Process]:
        """The processes of all askers."""
        everything = psutil.Process(self._process.pid).children(recursive=True)
        return [process for process in everything if title_of(process).startswith("ray::Asker")]

    def _ask(self, command: dict[str, object]) -> dict[str, str]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, str]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            _, told = self._process.communicate(timeout=60)
            raise AssertionError(told)
        about: dict[str, str] = json.loads(line)
        return about


def title_of(process: psutil.Process) -> str:
    """Its command line; empty if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def wait_until(is_true: Callable[[], object], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)

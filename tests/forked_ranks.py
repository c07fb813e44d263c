"""Ranks of a trainer as real processes that start fast: forked from one that has imported torch already.

Each rank is told its place as torchrun would tell it. Run as a program, this file is that process: a line of standard
input starts a run, and each line of its output says something of one.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

__all__ = ["ForkedRanks", "StartedRun", "free_port", "wait_until"]

_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
_SECONDS = 200.0


@dataclass(kw_only=True)
class StartedRun:
    """Some ranks that were started together."""

    pids: list[int]
    folder: Path
    """Where each rank writes what it says."""
    exit_codes: list[int] = field(default_factory=list)
    """Once it has ended; negative where a signal ended a rank."""

    def kill(self, rank: int, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.pids[rank], number)

    def said(self, rank: int) -> str:
        return (self.folder / f"{rank}.txt").read_text()


class ForkedRanks:
    """Starts runs on ranks of one machine, while its `with` block lasts."""

    def __init__(self, folder: Path, *, recipe: str = "kd") -> None:
        self._folder = folder
        self._recipe = recipe
        self._num_runs = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, __file__, self._recipe],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_ENVIRONMENT},
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=_SECONDS)
        self._process.stdout.close()

    def start(
        self, arguments: Sequence[str], *, num_ranks: int = 2, prepare: str = "", **environment: str
    ) -> StartedRun:
        """`prepare` is `module:function` of this folder, which each rank calls before it trains."""
        self._num_runs += 1
        folder = self._folder / f"said-{self._num_runs}"
        folder.mkdir(parents=True)
        self._tell(
            {
                "arguments": list(arguments),
                "num_ranks": num_ranks,
                "prepare": prepare,
                "environment": environment,
                "folder": str(folder),
                "port": free_port(),
            }
        )
        return StartedRun(pids=self._hear(), folder=folder)

    def end(self, run: StartedRun) -> StartedRun:
        """Wait until all ranks have ended."""
        self._tell({"wait_for": run.pids})
        run.exit_codes = self._hear()
        return run

    def run(
        self, arguments: Sequence[str], *, num_ranks: int = 2, prepare: str = "", **environment: str
    ) -> StartedRun:
        return self.end(self.start(arguments, num_ranks=num_ranks, prepare=prepare, **environment))

    def _tell(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def _hear(self) -> list[int]:
        assert self._process.stdout is not None
        numbers: list[int] = json.loads(self._process.stdout.readline())
        return numbers


def wait_until(condition: Callable[[], bool], *, seconds: float = _SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for has not come"
        time.sleep(0.005)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _serve(recipe: str) -> None:
    import crashproof.distillation.trainer  # noqa: F401 - once for all ranks: it takes seconds.
    from crashproof.distillation.command import main

    for line in sys.stdin:
        order = json.loads(line)
        if "wait_for" in order:
            told = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in order["wait_for"]]
        else:
            told = []
            for rank in range(order["num_ranks"]):
                pid = os.fork()
                if pid == 0:
                    _become_rank(rank, order)
                    sys.exit(main(recipe, order["arguments"]))
                told.append(pid)
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


def _become_rank(rank: int, order: dict[str, Any]) -> None:
    os.environ.update(
        {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(order["port"]),
            "WORLD_SIZE": str(order["num_ranks"]),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            **order["environment"],
        }
    )
    said = os.open(Path(order["folder"]) / f"{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, place in ((nothing, 0), (said, 1), (said, 2)):
        os.dup2(descriptor, place)
    module, _, function = order["prepare"].partition(":")
    if module:
        getattr(importlib.import_module(module), function)()


if __name__ == "__main__":
    _serve(sys.argv[1])

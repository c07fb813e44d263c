"""Send a job's requests from a Ray cluster."""

# ruff: noqa: E402 - a missing extra is reported before anything of it is imported.

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import subprocess
import sys
from asyncio.subprocess import Process
from collections import deque
from collections.abc import AsyncIterator, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from crashproof.answers.store import ResponseStore
from crashproof.errors import TeacherError
from crashproof.optional_dependencies import require_versions
from crashproof.teacher.client.client import OnFailure
from crashproof.teacher.jobs.engine import EngineResult, TeacherSettings
from crashproof.teacher.jobs.job import GenerationJob
from crashproof.teacher.jobs.stop_signals import StopSignals, handle_stop_signals

require_versions("ray", {"ray": "2.50"})

from crashproof.teacher.jobs.ray_cluster.channel import Channel
from crashproof.teacher.jobs.ray_cluster.driver import STOP_SIGNALS
from crashproof.teacher.jobs.ray_cluster.messages import ClusterTask, Failed, Finished, Order, Progress, Said
from crashproof.teacher.jobs.ray_cluster.store_file import with_absolute_path

__all__ = ["RayEngine"]

log = logging.getLogger("crashproof")

_PACKAGE_ROOT = str(Path(__file__).resolve().parents[3])
# Not `-m`: that would let any file of the working folder stand in for a module of Python's own.
_PROGRAM = (
    "import sys; sys.path.append(sys.argv[1]); from crashproof.teacher.jobs.ray_cluster.driver import main; main()"
)
_DRIVER = (sys.executable, "-P", "-c", _PROGRAM, _PACKAGE_ROOT)
_END_SECONDS = 20.0
"""How long the process may take to end once it has nothing more to do, or was asked to give up."""
_LONGEST_QUOTE = 300
_LINES_KEPT = 5
_HEAD_IS_GONE = "Failed to connect to GCS"


@dataclass(frozen=True, slots=True, kw_only=True)
class RayEngine:
    """Sends requests from every machine of a running cluster (`RAY_ADDRESS`, or else the one of this machine)."""

    settings: TeacherSettings
    store_url: str = field(repr=False)
    account: str
    on_failure: OnFailure
    driver: Sequence[str] = _DRIVER
    """The command that starts the process in which Ray lives."""

    def ask_all(
        self,
        job: GenerationJob,
        store: ResponseStore,
        *,
        reasons: MutableMapping[str, str],
        on_end: Callable[[int], None],
    ) -> EngineResult:
        """See `Engine`; the answers are in the shared store when it returns.

        Raises:
            ConfigError: no cluster is running, or it does not fit.
        """
        return asyncio.run(self._ask_all(job, reasons, on_end))

    async def _ask_all(
        self, job: GenerationJob, reasons: MutableMapping[str, str], on_end: Callable[[int], None]
    ) -> EngineResult:
        task = ClusterTask(
            job=job, settings=self.settings, store_url=with_absolute_path(self.store_url), account=self.account
        )
        async with handle_stop_signals() as signals, _start_driver(self.driver, signals) as driver:
            driver.channel.write(task)
            while (message := await driver.channel.read()) is not None:
                match message:
                    case Progress():
                        for retry_count, reason in message.failures:
                            self.on_failure(retry_count, reason)
                        reasons.update(message.reasons)
                        on_end(message.num_finished)
                    case Said():
                        log.log(message.level, "%s", message.text)
                    case Finished():
                        driver.has_finished = True
                        return replace(message.asked, reasons=reasons)
                    case Failed():
                        driver.has_finished = True
                        raise message.error
            raise await driver.error_of_death()


class _Driver:
    """The process in which Ray lives, and what it prints."""

    def __init__(self, process: Process, channel: Channel) -> None:
        self.channel = channel
        self.has_finished = False
        """Whether it has nothing more to do."""
        self._process = process
        self._num_lines = 0
        self._last_lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._listening = asyncio.create_task(self._listen())
        """Reads what Ray prints, which would break the output of a program, and counts it."""

    async def pass_on(self, signals: StopSignals) -> None:
        """Have it do what this process is asked to do."""
        await signals.stop.wait()
        self.channel.write(Order.STOP)
        await signals.give_up.wait()
        self.channel.write(Order.GIVE_UP)

    async def end(self, signals: StopSignals) -> None:
        """Wait for it; without its job, it waits for the answers in flight and ends."""
        await self.channel.close()
        waiting = asyncio.create_task(self._process.wait())
        giving_up = asyncio.create_task(signals.give_up.wait())
        if not self.has_finished:
            await asyncio.wait({waiting, giving_up}, return_when=asyncio.FIRST_COMPLETED)
        giving_up.cancel()
        await asyncio.wait({waiting}, timeout=_END_SECONDS)
        if not waiting.done():
            self._process.kill()
        await waiting
        await self._listening
        if self._num_lines:
            log.warning(
                "Ray printed %d lines of its own; they are left out here, its logs have more.", self._num_lines
            )

    async def error_of_death(self) -> TeacherError:
        """Why it is not there any more, from what it said last."""
        code = await self._process.wait()
        await self._listening
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        last = " ".join(" ".join(self._last_lines).split())
        if _HEAD_IS_GONE in last:
            problem = "The head of the Ray cluster is gone."
        else:
            problem = f"The process that asks from the Ray cluster ended {how}. {last[-_LONGEST_QUOTE:]}".rstrip()
        return TeacherError(
            problem, hint="Check the cluster, and start the same command again; every answer so far is kept."
        )

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        rest = b""
        while chunk := await self._process.stdout.read(1 << 16):
            *lines, rest = (rest + chunk)[-1 << 16 :].split(b"\n")
            self._num_lines += len(lines)
            self._last_lines.extend(line.decode("utf-8", "replace") for line in lines if line.strip())


@asynccontextmanager
async def _start_driver(command: Sequence[str], signals: StopSignals) -> AsyncIterator[_Driver]:
    # A socket and not a pipe: nobody can be killed by SIGPIPE for writing to a dead one.
    ours, theirs = socket.socketpair()
    # A signal to all processes of a job waits until the process handles it; see `driver.main`.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=theirs.fileno(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # A signal to this process group is not for it.
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()
    driver = _Driver(process, await Channel.over(ours))
    passing_on = asyncio.create_task(driver.pass_on(signals))
    try:
        yield driver
    finally:
        passing_on.cancel()
        await driver.end(signals)

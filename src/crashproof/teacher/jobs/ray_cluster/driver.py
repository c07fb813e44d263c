"""The process in which Ray lives, while a job asks from its cluster."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable

from crashproof.errors import ConfigError, CrashproofError
from crashproof.teacher.jobs.engine import EngineResult
from crashproof.teacher.jobs.ray_cluster.channel import Channel
from crashproof.teacher.jobs.ray_cluster.messages import ClusterTask, Failed, Finished, Order, Said
from crashproof.teacher.jobs.ray_cluster.pass_over import ask_all
from crashproof.teacher.jobs.stop_signals import StopSignals

__all__ = ["STOP_SIGNALS", "main"]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STANDARD_INPUT = 0


def main() -> None:
    """Serve the job that started this process, over the socket that is its standard input."""
    # The job is told as well, and passes on what is to be done.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    with socket.socket(fileno=os.dup(_STANDARD_INPUT)) as connection:
        asyncio.run(_serve(connection))


async def _serve(connection: socket.socket) -> None:
    channel = await Channel.over(connection)
    task: ClusterTask | None = await channel.read()
    if task is None:
        return
    orders = StopSignals()
    listening = asyncio.create_task(_listen(channel, orders))
    _forward_log(channel)
    channel.write(await _result_of(task, orders, channel))
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    await channel.close()


async def _listen(channel: Channel, orders: StopSignals) -> None:
    while (order := await channel.read()) is not None:
        orders.stop.set()
        if order is Order.GIVE_UP:
            orders.give_up.set()
    # The job is gone: what is in flight is paid for, and wanted by the next one.
    orders.stop.set()


async def _result_of(task: ClusterTask, orders: StopSignals, channel: Channel) -> Finished | Failed:
    try:
        return Finished(asked=await _ask_all(task, orders, channel))
    except CrashproofError as error:
        return Failed(error=error)
    except Exception as error:  # A bug, or one of Ray's own: its place is told beside it.
        traceback.print_exc(file=sys.stderr)
        return Failed(error=RuntimeError(f"{type(error).__name__}: {error}"))


async def _ask_all(task: ClusterTask, orders: StopSignals, channel: Channel) -> EngineResult:
    try:
        from crashproof.teacher.jobs.ray_cluster.running_ray import RunningRay
    except Exception as error:
        raise ConfigError(
            f"The installed Ray cannot be loaded: {type(error).__name__}: {error}.",
            hint="Install a version that fits: pip install --upgrade 'ray>=2.50'.",
        ) from error
    return await ask_all(task, RunningRay(), orders, tell=channel.write)


def _forward_log(channel: Channel) -> None:
    loop = asyncio.get_running_loop()
    log = logging.getLogger("crashproof")
    log.addHandler(_Forwarding(lambda said: loop.call_soon_threadsafe(channel.write, said)))
    log.setLevel(logging.WARNING)
    log.propagate = False


class _Forwarding(logging.Handler):
    """Sends what this process logs to the job, which logs it."""

    def __init__(self, send: Callable[[Said], object]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        # Without its loop, the job is gone too.
        with contextlib.suppress(RuntimeError):
            self._send(Said(level=record.levelno, text=record.getMessage()))

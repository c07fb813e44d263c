"""Threads that are a help and no need.

Where no thread can be started (`ulimit -u`, a container's limit of processes, no memory for a stack), Python raises
RuntimeError. What a thread was to do beside the training is then done in it: slower, and nothing ends because of it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import TypeVar

__all__ = ["run_or_submit", "try_to_start"]

log = logging.getLogger("crashproof")

T = TypeVar("T")

_has_warned = threading.Event()


def try_to_start(thread: threading.Thread) -> bool:
    """Start a thread; return whether that was possible. The first time that it is not is logged."""
    try:
        thread.start()
    except RuntimeError as error:
        _warn_once(error)
        return False
    return True


def run_or_submit(pool: Executor, work: Callable[[], T]) -> Future[T]:
    """Have a pool do something; where it cannot start its thread, do it at once."""
    future: Future[T] = Future()
    # A pool keeps what it could not start, and does it with its next thread.
    is_free = threading.Lock()

    def run() -> None:
        if not is_free.acquire(blocking=False) or not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    try:
        pool.submit(run)
    except RuntimeError as error:
        _warn_once(error)
        run()
    return future


def _warn_once(error: RuntimeError) -> None:
    if not _has_warned.is_set():
        _has_warned.set()
        log.warning(
            "No thread could be started (%s): its work is done in the calling thread, which is slower. Raise the "
            "limit with `ulimit -u`, or the container's limit of processes (pids).",
            error,
        )

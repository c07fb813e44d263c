"""Ask the ranks' common store, and never wait longer than a limit.

A client of PyTorch's TCPStore reads its socket until something arrives. After a network cut that is never, and no
time limit of the store interrupts it; so each question is asked in a thread that is left behind without an answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from torch.distributed.distributed_c10d import Store

__all__ = ["BoundedStore", "StoreSilent", "call_within"]

ResultT = TypeVar("ResultT")


class StoreSilent(Exception):
    """The store did not answer in time, or is gone."""


class BoundedStore:
    """A store of strings whose calls end; after one without an answer, all others fail at once."""

    def __init__(self, store: Store, *, name: str) -> None:
        """`name` is what messages call the store, such as `host-a:29400`."""
        self.name = name
        self._store = store
        self._silence: StoreSilent | None = None

    def set(self, key: str, value: str, *, seconds: float) -> None:
        """Store a value.

        Raises:
            StoreSilent: The store did not answer within so many seconds, or is gone; so do all methods.
        """
        self._ask(lambda: self._store.set(key, value), seconds)

    def get(self, key: str, *, seconds: float) -> str | None:
        """The value of a key, or None if it was never set."""

        def ask() -> str | None:
            # The store's own `get` waits until there is a value.
            return str(self._store.get(key), "utf-8") if self._store.check([key]) else None

        return self._ask(ask, seconds)

    def append(self, key: str, value: str, *, seconds: float) -> None:
        """Lengthen the value of a key, which need not have one."""
        self._ask(lambda: self._store.append(key, value), seconds)  # type: ignore[attr-defined]  # torch's stubs lack it.

    def _ask(self, ask: Callable[[], ResultT], seconds: float) -> ResultT:
        if self._silence is not None:
            raise self._silence
        try:
            return call_within(seconds, ask)
        except (RuntimeError, TimeoutError) as error:
            self._silence = StoreSilent(f"the store at {self.name} does not answer")
            raise self._silence from error


def call_within(seconds: float, call: Callable[[], ResultT]) -> ResultT:
    """Call something in a thread of its own, and wait for its result no longer than this.

    Raises:
        TimeoutError: It has not returned; its thread is left to itself, and keeps no process from ending.
    """
    future: Future[ResultT] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    try:
        threading.Thread(target=run, name="crashproof-call", daemon=True).start()
    except RuntimeError:
        # No thread can be had: better without a limit than not at all.
        run()
    return future.result(timeout=seconds)

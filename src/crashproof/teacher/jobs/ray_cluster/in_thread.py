"""Wait for something that blocks, in a thread that keeps no process from exiting."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["in_thread"]

T = TypeVar("T")


async def in_thread(do: Callable[[], T]) -> T:
    """Await what `do` returns or raises. If cancelled, it goes on unattended."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(result)  # type: ignore[arg-type]  # None only where T is.
        else:
            done.set_exception(error)

    def work() -> None:
        result, error = None, None
        try:
            result = do()
        except Exception as raised:  # Raised again by whoever waits.
            error = raised
        # Without its loop, nobody waits any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="crashproof-ray", daemon=True).start()
    return await done

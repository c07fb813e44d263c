"""Signals that ask a job to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

__all__ = ["StopSignals", "handle_stop_signals"]

log = logging.getLogger("crashproof")


@dataclass(frozen=True, slots=True, kw_only=True)
class StopSignals:
    """What a job was asked to do."""

    stop: asyncio.Event = field(default_factory=asyncio.Event)
    """Send no further requests, and wait for those in flight."""
    give_up: asyncio.Event = field(default_factory=asyncio.Event)
    """Give up the requests in flight."""


@asynccontextmanager
async def handle_stop_signals() -> AsyncIterator[StopSignals]:
    """Stop at the first SIGINT, SIGTERM or SIGHUP; at the second, give up the requests in flight."""
    signals = StopSignals()
    loop = asyncio.get_running_loop()

    def note(number: signal.Signals) -> None:
        if signals.stop.is_set():
            signals.give_up.set()
            return
        log.warning(
            "%s: sending no more requests; waiting for those in flight. Repeat the signal to give them up.",
            number.name,
        )
        signals.stop.set()

    numbers = _signals_to_handle()
    for number in numbers:
        loop.add_signal_handler(number, note, number)
    try:
        yield signals
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _signals_to_handle() -> list[signal.Signals]:
    # Python delivers signals to its main thread only.
    if threading.current_thread() is not threading.main_thread():
        return []
    # `nohup` ignores it, and so does the job then.
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if is_ignored else [signal.SIGHUP])]

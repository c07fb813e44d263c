"""Tell a page what is new, as it comes.

Server-sent events: each `tail` event carries, as its id, how many bytes of the journal the page has seen with it, so
that a browser that connects again goes on exactly there. A page that hears nothing for a while (some proxies hold
events back) asks for the same answers one by one.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from anyio import to_thread

from crashproof.dashboard.watched_run import WatchedRun, json_bytes
from crashproof.errors import CrashproofError

__all__ = ["live_events"]

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_BETWEEN_DETAILS = 2.0


async def live_events(
    run: WatchedRun, *, after: int, now: Callable[[], float], stops: Callable[[], bool]
) -> AsyncIterator[bytes]:
    """Events for as long as the page listens; `after`: what it has seen of the journal, in bytes."""
    yield b"retry: 2000\n\n"
    told_at = -_SECONDS_BETWEEN_DETAILS
    told: dict[str, Any] = {}
    while not stops():
        try:
            tail = await to_thread.run_sync(functools.partial(run.tail, after=after))
            if tail["is_stale"] or tail["num_updates"]:
                after = tail["end"]
                yield _event("tail", tail, identity=after)
            if time.monotonic() - told_at >= _SECONDS_BETWEEN_DETAILS:
                told_at = time.monotonic()
                # Also a sign of life: without one a page asks by itself.
                detail = await to_thread.run_sync(functools.partial(run.detail, now=now()))
                always = {name: detail.pop(name) for name in ("now", "summary")}
                # Checkpoints, events and config are long, and seldom change.
                if detail == told:
                    yield _event("summary", always)
                else:
                    yield _event("detail", detail | always)
                    told = detail
        except (CrashproofError, OSError) as error:
            yield _event("trouble", {"error": str(error)})
        await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)


def _event(name: str, answer: dict[str, Any], *, identity: int | None = None) -> bytes:
    head = b"" if identity is None else b"id: %d\n" % identity
    return b"%bevent: %b\ndata: %b\n\n" % (head, name.encode(), json_bytes(answer))

"""Stream a run's updates to a page.

Server-sent events: the id of each `tail` event is the number of journal bytes that the page has seen, so a browser
that reconnects continues exactly there. A page that receives nothing for a while (some proxies buffer events) polls
instead.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable

from anyio import to_thread
from msgspec import structs

from crashproof.dashboard.responses import RunDetail, RunNow, StaleTail, json_bytes
from crashproof.dashboard.watched_run import WatchedRun
from crashproof.errors import CrashproofError

__all__ = ["live_events"]

_SECONDS_BETWEEN_READS = 1.0
_SECONDS_BETWEEN_DETAILS = 2.0


async def live_events(
    run: WatchedRun, *, after: int, now: Callable[[], float], stops: Callable[[], bool]
) -> AsyncIterator[bytes]:
    """Yield events until the page disconnects or `stops` returns True; `after`: journal bytes it has seen."""
    yield b"retry: 2000\n\n"
    sent_at = -_SECONDS_BETWEEN_DETAILS
    sent: RunDetail | None = None
    while not stops():
        try:
            tail = await to_thread.run_sync(functools.partial(run.tail, after=after))
            if isinstance(tail, StaleTail) or tail.num_updates:
                after = tail.end
                yield _event("tail", tail, identity=after)
            if time.monotonic() - sent_at >= _SECONDS_BETWEEN_DETAILS:
                sent_at = time.monotonic()
                # Also a sign of life: without one the page begins to poll.
                detail = await to_thread.run_sync(functools.partial(run.detail, now=now()))
                # Checkpoints, events and config are long, and seldom change.
                if sent is not None and detail == structs.replace(sent, now=detail.now, summary=detail.summary):
                    yield _event("summary", RunNow(now=detail.now, summary=detail.summary))
                else:
                    yield _event("detail", detail)
                    sent = detail
        except (CrashproofError, OSError) as error:
            yield _event("trouble", {"error": str(error)})
        await asyncio.sleep(_SECONDS_BETWEEN_READS)


def _event(name: str, content: object, *, identity: int | None = None) -> bytes:
    head = b"" if identity is None else b"id: %d\n" % identity
    return b"%bevent: %b\ndata: %b\n\n" % (head, name.encode(), json_bytes(content))

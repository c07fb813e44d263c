"""Stream a run's updates to a page.

Server-sent events: the id of each `tail` event is the number of journal bytes that the page has seen, so a browser
that reconnects continues exactly there. A page that receives nothing for a while (some proxies buffer events) polls
instead.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from anyio import to_thread
from msgspec import structs
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from crashproof.dashboard.responses import RunDetail, RunNow, StaleTail, as_json
from crashproof.dashboard.watched_run import WatchedRun
from crashproof.errors import CrashproofError

__all__ = ["LiveResponse", "Streams", "live_events"]

log = logging.getLogger("crashproof")

_SECONDS_BETWEEN_READS = 1.0
_SECONDS_BETWEEN_DETAILS = 2.0


class Streams:
    """The open event streams of one server."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.num_open = 0
        self.is_closing = asyncio.Event()

    def close(self) -> None:
        """End all streams."""
        self.is_closing.set()

    async def pause(self, seconds: float) -> None:
        """Wait for a while, or until the streams end."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.is_closing.wait(), seconds)


class LiveResponse(StreamingResponse):
    """A stream of events, if there are not too many."""

    def __init__(self, events: AsyncIterator[bytes], streams: Streams) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"x-accel-buffering": "no"})
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream the events, or refuse to."""
        if self._streams.num_open >= self._streams.most:
            log.warning("%d pages receive live updates, the most for this server; others poll.", self._streams.most)
            content = as_json({"error": "Too many pages receive live updates; this one polls instead."})
            refusal = Response(content, status_code=503, headers={"retry-after": "30"}, media_type="application/json")
            await refusal(scope, receive, send)
            return
        self._streams.num_open += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.num_open -= 1


async def live_events(
    run: WatchedRun, *, after: int, now: Callable[[], float], streams: Streams
) -> AsyncIterator[bytes]:
    """Yield events until the page disconnects or all streams end; `after`: journal bytes it has seen."""
    yield b"retry: 2000\n\n"
    sent_at = -_SECONDS_BETWEEN_DETAILS
    sent: RunDetail | None = None
    while not streams.is_closing.is_set():
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
        await streams.pause(_SECONDS_BETWEEN_READS)


def _event(name: str, content: object, *, identity: int | None = None) -> bytes:
    head = b"" if identity is None else b"id: %d\n" % identity
    return b"%bevent: %b\ndata: %b\n\n" % (head, name.encode(), as_json(content))

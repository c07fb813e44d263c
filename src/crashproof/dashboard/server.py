"""Serve the page until interrupted."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import uvicorn

from crashproof.dashboard.access import Access
from crashproof.dashboard.app import app_for
from crashproof.dashboard.connections import Connections, Listener
from crashproof.dashboard.limits import Limits
from crashproof.dashboard.live import Streams
from crashproof.dashboard.server_log import limited_log

__all__ = ["PageServer", "run_server"]

_SECONDS_TO_CLOSE = 1


def run_server(root: Path, access: Access, listener: socket.socket, *, follows_links: bool = False) -> None:
    """Serve on a listening socket until SIGINT or SIGTERM."""
    with limited_log():
        PageServer(root, access, follows_links=follows_links).serve_on(listener)


class PageServer(uvicorn.Server):
    """A server of all runs under `root`, with limits on what its clients take."""

    def __init__(
        self,
        root: Path,
        access: Access,
        *,
        now: Callable[[], float] = time.time,
        follows_links: bool = False,
        limits: Limits | None = None,
    ) -> None:
        limits = limits or Limits.of_this_process()
        self._connections = Connections(limits)
        self._streams = Streams(limits.most_streams)
        app = app_for(root, access, now=now, streams=self._streams, follows_links=follows_links)
        super().__init__(
            uvicorn.Config(
                app,
                http=self._connections.protocol(),
                ws="none",
                loop="asyncio",
                backlog=128,
                h11_max_incomplete_event_size=limits.most_header_bytes,
                # An access log would contain tokens.
                access_log=False,
                log_config=None,
                log_level="warning",
                server_header=False,
                timeout_graceful_shutdown=_SECONDS_TO_CLOSE,
                # Only the scheme is taken from a proxy; the client's address is not used.
                proxy_headers=True,
                lifespan="off",
            )
        )

    def serve_on(self, listener: socket.socket) -> None:
        """Serve on a listening socket, which it closes at the end."""
        limited = Listener(fileno=listener.detach())
        limited.connections = self._connections
        try:
            self.run(sockets=[limited])
        finally:
            limited.close()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the open streams, then the server."""
        self._streams.close()
        await super().shutdown(sockets)

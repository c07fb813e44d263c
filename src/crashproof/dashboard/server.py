"""Serve the page until interrupted."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import uvicorn

from crashproof.dashboard.access import Access
from crashproof.dashboard.app import app_for

__all__ = ["run_server", "server_config"]

_SECONDS_TO_CLOSE = 1


def run_server(root: Path, access: Access, listener: socket.socket) -> None:
    """Serve on a listening socket until SIGINT or SIGTERM."""
    uvicorn.Server(server_config(root, access)).run(sockets=[listener])


def server_config(root: Path, access: Access, *, now: Callable[[], float] = time.time) -> uvicorn.Config:
    """Return the server's settings for all runs under `root`."""
    return uvicorn.Config(
        app_for(root, access, now=now),
        # An access log would contain tokens.
        access_log=False,
        log_level="warning",
        server_header=False,
        # Open pages hold a stream open.
        timeout_graceful_shutdown=_SECONDS_TO_CLOSE,
        # Only the scheme is taken from a proxy; the client's address is not used.
        proxy_headers=True,
        lifespan="off",
    )

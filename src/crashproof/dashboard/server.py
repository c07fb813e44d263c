"""Serve the page until somebody ends it."""

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
    """Answer on a listening socket until SIGINT or SIGTERM comes."""
    uvicorn.Server(server_config(root, access)).run(sockets=[listener])


def server_config(root: Path, access: Access, *, now: Callable[[], float] = time.time) -> uvicorn.Config:
    """How all runs under `root` are served."""
    return uvicorn.Config(
        app_for(root, access, now=now),
        # An access log would have tokens in it.
        access_log=False,
        log_level="warning",
        server_header=False,
        # Pages listen to a stream for as long as they are open.
        timeout_graceful_shutdown=_SECONDS_TO_CLOSE,
        # A proxy's word for the scheme; the client's address is used for nothing.
        proxy_headers=True,
        lifespan="off",
    )

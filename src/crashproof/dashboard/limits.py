"""What clients may take of the server."""

from __future__ import annotations

import resource
from dataclasses import dataclass

__all__ = ["Limits"]

_DESCRIPTORS_FOR_FILES = 160
"""For the journals that requests read, and connections that are closed in the next moment."""
_FEWEST_CONNECTIONS = 16
_MOST_CONNECTIONS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a server, so that no client can stop it for the others."""

    most_connections: int
    most_connections_per_address: int
    """For one address of another machine; all of loopback, where proxies and tunnels end, has no limit of its own."""
    most_streams: int
    """Event streams that are open at once; a page beyond them polls."""
    seconds_per_request: float = 10.0
    """For sending a request, from the connection's beginning or the last response on."""
    seconds_without_reading: float = 30.0
    """For a client that takes no byte of its response."""
    most_header_bytes: int = 32 * 1024

    @classmethod
    def for_descriptors(cls, descriptors: int) -> Limits:
        """Return the limits of a process that may have this many open files."""
        connections = max(_FEWEST_CONNECTIONS, min(_MOST_CONNECTIONS, descriptors - _DESCRIPTORS_FOR_FILES))
        return cls(
            most_connections=connections,
            most_connections_per_address=connections // 2,
            most_streams=connections // 2,
        )

    @classmethod
    def of_this_process(cls) -> Limits:
        """Return the limits for the number of files that this process may open."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return cls.for_descriptors(_MOST_CONNECTIONS * 2 if soft == resource.RLIM_INFINITY else soft)

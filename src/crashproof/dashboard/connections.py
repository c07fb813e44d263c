"""Keep clients from using up the server's connections.

A connection waits for its client, or it is at work on a request. A connection too many takes the place of the one
that has waited longest: a client that sends its request at once is served however many others send none. Waiting has
a limit of its own.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
from asyncio import TimerHandle, Transport
from collections import Counter
from contextlib import suppress
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from crashproof.dashboard.access import SECURITY_HEADERS
from crashproof.dashboard.limits import Limits

__all__ = ["Connections", "LimitedProtocol", "Listener"]

log = logging.getLogger("crashproof")

_ACCEPTED_PER_TURN = 8
_WHO_GIVES_WAY = "Each new one replaces the one that has waited longest without a request."
_OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Connections:
    """The open connections of one server, and which of them gives way to a new one."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._open: set[LimitedProtocol] = set()
        self._num_by_address: Counter[str] = Counter()

    def protocol(self) -> type[LimitedProtocol]:
        """The class of this server's connections, as uvicorn takes it."""

        class Connection(LimitedProtocol):
            registry = self

        return Connection

    def add(self, connection: LimitedProtocol) -> None:
        """Admit a connection; another one, or this one, is dropped where there are too many."""
        self._open.add(connection)
        self._num_by_address[connection.address] += 1
        if len(self._open) > self.limits.most_connections:
            log.warning("%d connections are open, the most for this server. %s", len(self._open) - 1, _WHO_GIVES_WAY)
            self._drop_one(self._open)
        elif self._is_over_its_share(connection.address):
            own = {each for each in self._open if each.address == connection.address}
            log.warning(
                "%d connections from %s are open, the most for one address. %s",
                len(own) - 1,
                connection.address,
                _WHO_GIVES_WAY,
            )
            self._drop_one(own)

    def remove(self, connection: LimitedProtocol) -> None:
        """Forget a connection that was closed or dropped."""
        if connection in self._open:
            self._open.remove(connection)
            self._num_by_address[connection.address] -= 1
            # Drops what is zero.
            self._num_by_address += Counter()

    def make_room(self) -> None:
        """Drop the connection that has waited longest: there is no descriptor for another one."""
        self._drop_one(self._open)

    def _drop_one(self, among: set[LimitedProtocol]) -> None:
        waiting = [each for each in among if each.waits_since is not None]
        if waiting:
            dropped = min(waiting, key=lambda each: each.waits_since or 0.0)
            self.remove(dropped)
            dropped.drop()

    def _is_over_its_share(self, address: str) -> bool:
        return not _is_loopback(address) and self._num_by_address[address] > self.limits.most_connections_per_address


class LimitedProtocol(H11Protocol):
    """A connection of HTTP/1.1 that is not kept waiting for long."""

    registry: ClassVar[Connections]
    waits_since: float | None = None
    """Since when it waits for its client, by the loop's clock; None while the server is at work on a request."""
    address = ""
    _timer: TimerHandle | None = None
    _num_unsent = 0

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self._wait(self.registry.limits.seconds_per_request)
        self.registry.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        self.registry.remove(self)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Read what has arrived; a complete request ends the waiting."""
        super().handle_events()
        if self._is_at_work() and not self.flow.write_paused:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Wait for the next request, which may have arrived already."""
        limits = self.registry.limits
        self._wait(limits.seconds_without_reading if self.flow.write_paused else limits.seconds_per_request)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Wait until the client reads."""
        super().pause_writing()
        self._wait(self.registry.limits.seconds_without_reading)

    def resume_writing(self) -> None:
        """Go on: the client has read."""
        super().resume_writing()
        if self._is_at_work():
            self._stop_waiting()
        elif self.waits_since is not None:
            self._wait(self.registry.limits.seconds_per_request)

    def drop(self) -> None:
        """Close the connection at once."""
        self._stop_waiting()
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no valid HTTP, with the security headers."""
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.close()
            return
        headers = {"content-type": "text/plain; charset=utf-8", "cache-control": "no-store", "connection": "close"}
        response = h11.Response(
            status_code=400, headers=[*(headers | SECURITY_HEADERS).items()], reason=b"Bad Request"
        )
        for event in (response, h11.Data(data=msg.encode()), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _is_at_work(self) -> bool:
        # None before the first request, whatever its type says.
        return self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]

    def _wait(self, seconds: float) -> None:
        self._stop_waiting()
        self.waits_since = self.loop.time()
        self._num_unsent = self.transport.get_write_buffer_size()
        self._timer = self.loop.call_later(seconds, self._drop_unless_it_reads)

    def _stop_waiting(self) -> None:
        self.waits_since = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _drop_unless_it_reads(self) -> None:
        """Drop the connection, but for one that takes its response slowly."""
        num_unsent = self.transport.get_write_buffer_size()
        if 0 < num_unsent < self._num_unsent:
            self._num_unsent = num_unsent
            self._timer = self.loop.call_later(
                self.registry.limits.seconds_without_reading, self._drop_unless_it_reads
            )
            return
        self.drop()


class Listener(socket.socket):
    """A listening socket that accepts a few connections at a time, and does not fail without descriptors."""

    connections: Connections | None = None
    _num_accepted = 0
    _spare: socket.socket | None = None

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection; between a few of them the server goes on with those that it has."""
        self._num_accepted += 1
        if self._num_accepted > _ACCEPTED_PER_TURN:
            self._num_accepted = 0
            raise BlockingIOError
        try:
            accepted = super().accept()
            if self._spare is None:
                self._spare = socket.socket()
        except OSError as error:
            self._num_accepted = 0
            if error.errno not in _OUT_OF_DESCRIPTORS:
                raise
            self._refuse_one()
            raise BlockingIOError from error
        return accepted

    def close(self) -> None:
        """Close it with its spare descriptor."""
        self._give_up_spare()
        super().close()

    def _refuse_one(self) -> None:
        """Close the next connection without an answer: left in the queue, it would wake the server for ever."""
        log.warning("No file descriptor is left for a new connection; it was closed. Raise `ulimit -n`.")
        self._give_up_spare()
        with suppress(OSError):
            super().accept()[0].close()
        with suppress(OSError):
            self._spare = socket.socket()
        if self.connections is not None:
            self.connections.make_room()

    def _give_up_spare(self) -> None:
        if self._spare is not None:
            self._spare.close()
            self._spare = None


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return True

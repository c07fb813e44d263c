"""Exchange objects with another process of this program."""

from __future__ import annotations

import asyncio
import pickle
import socket
from typing import Any, Self

__all__ = ["Channel"]

_LENGTH_BYTES = 8


class Channel:
    """One end of a socket between two processes that run the same code; for one event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Use the streams of a socket; see `over`."""
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, connection: socket.socket) -> Self:
        """Take over a connected socket."""
        return cls(*await asyncio.open_connection(sock=connection))

    def write(self, message: object) -> None:
        """Send an object without waiting; what the other end does not read any more is dropped."""
        content = pickle.dumps(message)
        if not self._writer.is_closing():
            self._writer.write(len(content).to_bytes(_LENGTH_BYTES, "big") + content)

    async def drain(self) -> None:
        """Wait until the other end has read most of what was sent, or is gone."""
        try:
            await self._writer.drain()
        except ConnectionError:
            return

    async def read(self) -> Any:
        """The next object; None once the other end is closed."""
        try:
            length = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES), "big")
            # From the same program, over a socket that has no name.
            return pickle.loads(await self._reader.readexactly(length))  # noqa: S301
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def close(self) -> None:
        """Send what is left, and close this end."""
        await self.drain()
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            return

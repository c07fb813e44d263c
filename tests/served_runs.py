"""Runs behind a real server on loopback."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What a server said."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Served:
    """A folder of runs behind a real server on loopback."""

    port: int
    root: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def get(self, path: str, *, method: str = "GET", **headers: str) -> Answer:
        """One request, to the letter: nothing is normalized on its way."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.putrequest(method, path, skip_host="Host" in given, skip_accept_encoding=True)
            for name, value in given.items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            headers_back = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, headers_back, answer.read())
        finally:
            connection.close()


@contextmanager
def served(root: Path, access: Any, now: Callable[[], float], **given: Any) -> Iterator[Served]:
    """The server as `crashproof serve` runs it, in a thread."""
    from crashproof.dashboard.server import PageServer

    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = PageServer(root, access, now=now, **given)
    thread = threading.Thread(target=server.serve_on, args=(listener,))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Served(port=port, root=root)
    finally:
        server.should_exit = True
        thread.join()

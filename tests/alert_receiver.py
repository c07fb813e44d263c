"""A local receiver of webhooks, and an alert to send to it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from crashproof.alerts.content import AlertContent

PATH = "/hook/very-secret-path"

CONTENT = AlertContent(
    kind="raised",
    message="ValueError: <b> & so on",
    run="/runs/one",
    session_id="training_1",
    attempt=2,
    step=1400,
    host="node7",
    time=1_700_000_000.5,
    progress_pct=14.0,
)


class AlertReceiver:
    """Responds with each of `statuses`, then with 200; where it `hangs`, not at all until the block ends."""

    def __init__(self, *, statuses: tuple[int, ...] = (), hangs: bool = False) -> None:
        self.received: list[tuple[str, dict[str, Any]]] = []
        """Path and content of each request."""
        self.headers: list[dict[str, str]] = []
        self._statuses = list(statuses)
        self._hangs = hangs
        self._has_ended = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.headers.append(dict(self.headers))
                receiver.received.append((self.path, content))
                if receiver._hangs:
                    receiver._has_ended.wait(60)
                    return
                status = receiver._statuses.pop(0) if receiver._statuses else 200
                self.send_response(status)
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}{PATH}"

    @property
    def kinds(self) -> list[str]:
        return sorted(content["kind"] for _, content in self.received)

    def wait_for(self, count: int) -> None:
        """Wait until so many requests were received."""
        eventually(lambda: len(self.received) >= count)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._has_ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def eventually(is_so: Callable[[], bool], *, seconds: float = 60.0) -> None:
    """Wait for a condition; the limit ends a test that would hang."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not true after {seconds:.0f} s"
        time.sleep(0.02)

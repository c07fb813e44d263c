"""Metadata addresses of two clouds, on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Metadata:
    """What the addresses say; nothing is announced until `announce`."""

    def __init__(self) -> None:
        self.url = ""
        self.num_asked = 0
        self.tokens_given = 0
        self._ends_at: datetime | None = None

    def announce(self, seconds_left: float) -> None:
        """Announce the end of the machine; Google's has no moment."""
        self._ends_at = datetime.now(UTC) + timedelta(seconds=seconds_left)

    def expire_token(self) -> None:
        """Refuse the tokens that were given so far."""
        self.tokens_given += 1

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        self.num_asked += 1
        if path == "/latest/api/token":
            if method != "PUT" or "x-aws-ec2-metadata-token-ttl-seconds" not in headers:
                return 403, ""
            return 200, f"token-{self.tokens_given}"
        if path == "/latest/meta-data/spot/instance-action":
            if headers.get("x-aws-ec2-metadata-token") != f"token-{self.tokens_given}":
                return 401, ""
            if self._ends_at is None:
                return 404, ""
            return 200, json.dumps({"action": "terminate", "time": self._ends_at.strftime("%Y-%m-%dT%H:%M:%SZ")})
        if path == "/computeMetadata/v1/instance/preempted" and headers.get("metadata-flavor") == "Google":
            return 200, "FALSE" if self._ends_at is None else "TRUE"
        return 403, ""


@contextmanager
def metadata_server() -> Iterator[Metadata]:
    """Serve until the context is left."""
    metadata = Metadata()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            code, body = metadata.answer(self.command, self.path, headers)
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_PUT = do_GET  # noqa: N815 - the name is given

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    metadata.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield metadata
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

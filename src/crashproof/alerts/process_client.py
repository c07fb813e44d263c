"""Hand alerts to another process.

The process that sends is not the one that trains: a receiver that hangs slows nothing, and a training that is killed
can still be told of. It gets its settings over its standard input, so that no list of processes shows an address.
"""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec

__all__ = ["HELD_BACK", "AlertHelper", "Channels", "Deliver", "GoodBye", "Watched"]

log = logging.getLogger("crashproof")

HELD_BACK = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals by which schedulers and people ask all processes of a job to stop."""
_MOST_STARTS = 4
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
# Not `-m`: that would let any file of the working folder stand in for a module of Python's own.
_PROGRAM = "import sys; sys.path.append(sys.argv[1]); from crashproof.alerts.process import main; main()"


class Channels(msgspec.Struct, frozen=True, kw_only=True):
    """Where alerts go."""

    webhook: str | None
    slack_webhook: str | None
    command: list[str] | str | None
    desktop: bool


class Watched(msgspec.Struct, frozen=True, kw_only=True, tag="watched"):
    """The first line that the process is given: whom it serves."""

    pid: int
    """Of the training."""
    progress: str
    """The run's progress folder."""
    session_id: str
    attempt: int
    channels: Channels
    kinds: list[str]
    """Those that are sent."""


class Deliver(msgspec.Struct, frozen=True, kw_only=True, tag="deliver"):
    """An alert to send."""

    content: dict[str, Any]


class GoodBye(msgspec.Struct, frozen=True, tag="good_bye"):
    """The attempt has ended in good order, or another has replaced it."""


class AlertHelper:
    """The process that sends, as the training sees it. No method waits, and none raises `OSError`."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._num_starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._rest = b""
        """The end of a line that the process has got the beginning of."""
        self._is_over = False
        self._start()

    def hand_over(self, content: dict[str, Any]) -> None:
        """Let an alert be sent; one that there is no room for is dropped, and the log says so."""
        self.keep_alive()
        if not self._send(Deliver(content=content)):
            log.warning("The alert %s is not sent: the process that sends alerts does not take it.", content["kind"])

    def keep_alive(self) -> None:
        """Start the process again where it has died, a few times."""
        if self._is_over or self._process is None or self._process.returncode is None:
            return
        if self._num_starts >= _MOST_STARTS:
            log.warning("The process that sends alerts has died once more; no more alerts are sent.")
            self.leave()
            return
        log.warning(
            "The process that sends alerts has died (exit code %d); it is started again.", self._process.returncode
        )
        self._start()

    def say_good_bye(self) -> None:
        """Let the process send what it has, and end."""
        if not self._is_over:
            self._send(GoodBye())
        self.leave()

    def leave(self) -> None:
        """Let go without a word, as a forked child must."""
        self._is_over = True
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _start(self) -> None:
        self._num_starts += 1
        self._rest = b""
        if self._socket is not None:
            self._socket.close()
        # A socket and not a pipe: nobody can be killed by SIGPIPE for writing to a dead one.
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        # Until it listens, a signal for all processes of a job waits; see `alert_post.main`.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this very package
                [sys.executable, "-P", "-c", _PROGRAM, _PACKAGE_ROOT],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                # A signal to the training's process group is not for it.
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            log.warning("Alerts are not sent: no process could be started for them (%s).", error)
            self.leave()
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()
        # Nobody else waits for it, and a dead one would stay a zombie.
        threading.Thread(target=self._process.wait, name="crashproof-alerts", daemon=True).start()
        self._send(self._watched)

    def _send(self, record: Watched | Deliver | GoodBye) -> bool:
        if self._socket is None:
            return False
        line = msgspec.json.encode(record) + b"\n"
        if self._rest:
            self._rest = self._rest[self._sent(self._rest) :]
            if self._rest:
                return False
        num_sent = self._sent(line)
        if num_sent:
            self._rest = line[num_sent:]
        return num_sent > 0

    def _sent(self, content: bytes) -> int:
        assert self._socket is not None
        try:
            return self._socket.send(content, getattr(socket, "MSG_NOSIGNAL", 0))
        except OSError:
            # It does not read, or is gone; `keep_alive` looks.
            return 0

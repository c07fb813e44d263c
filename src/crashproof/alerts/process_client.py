"""Hand alerts to another process.

The process that sends is not the one that trains: a receiver that hangs slows nothing, and a training that is killed
is still reported. It reads its settings from standard input, so no process list shows an address.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import msgspec

from crashproof.alerts.channels.base import Setting
from crashproof.alerts.content import AlertContent
from crashproof.disk.descriptors import above_standard
from crashproof.threads import try_to_start

__all__ = ["STOP_SIGNALS", "AlertProcess", "Finished", "Send", "WatchedRun"]

log = logging.getLogger("crashproof")

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals by which schedulers and people ask all processes of a job to stop."""
_MOST_STARTS = 4
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
# Not `-m`: that would let any file of the working folder stand in for a module of Python's own.
_PROGRAM = "import sys; sys.path.append(sys.argv[1]); from crashproof.alerts.process import main; main()"


class WatchedRun(msgspec.Struct, frozen=True, kw_only=True, tag="watched_run"):
    """The first line that the process receives: the training that it serves."""

    pid: int
    """Of the training."""
    progress: str
    """The run's progress folder."""
    session_id: str
    attempt: int
    channels: dict[str, Setting]
    """The settings of those that are switched on, by name."""
    kinds: list[str]
    """Those that are sent."""


class Send(msgspec.Struct, frozen=True, kw_only=True, tag="send"):
    """An alert to send."""

    content: AlertContent


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The attempt has recorded its end, or another has replaced it."""


class AlertProcess:
    """The process that sends, as the training sees it. No method waits, and none raises `OSError`."""

    def __init__(self, watched: WatchedRun) -> None:
        self._watched = watched
        self._num_starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._rest = b""
        """The end of a line whose beginning is written."""
        self._is_over = False
        self._is_waited_for = True
        """Whether a thread waits for the process; else each look asks whether it has died."""
        self._start()

    def hand_over(self, content: AlertContent) -> None:
        """Have an alert sent; one that there is no room for is dropped and logged."""
        self.restart_if_dead()
        if not self._write(Send(content=content)):
            log.warning("Alert %s was not sent: the process that sends alerts is not reading.", content.kind)

    def restart_if_dead(self) -> None:
        """Start the process again where it has died, a few times."""
        if self._is_over or self._process is None:
            return
        if not self._is_waited_for:
            self._process.poll()
        if self._process.returncode is None:
            return
        if self._num_starts >= _MOST_STARTS:
            log.warning("The process that sends alerts died %d times; no more alerts are sent.", _MOST_STARTS)
            self.detach()
            return
        log.warning("The process that sends alerts died (exit code %d); restarting it.", self._process.returncode)
        self._start()

    def finish(self) -> None:
        """Let the process send what it has, and exit."""
        if not self._is_over:
            self._write(Finished())
        self.detach()

    def detach(self) -> None:
        """Close this end and write nothing, as a forked child must."""
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
        try:
            self._socket, theirs = map(_above_standard, socket.socketpair())
        except OSError as error:
            log.warning("Alerts are not sent: could not start a process for them (%s).", error)
            self.detach()
            return
        self._socket.setblocking(False)
        # A signal to all processes of a job waits until the process handles it; see `process.main`.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this very package
                [sys.executable, "-P", "-c", _PROGRAM, _PACKAGE_ROOT],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                # If it has none to inherit, one of its own files would get that number.
                stderr=None if _is_open(2) else subprocess.DEVNULL,
                # A signal to the training's process group is not for it.
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            log.warning("Alerts are not sent: could not start a process for them (%s).", error)
            self.detach()
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()
        # Nobody else waits for it, and a dead one would stay a zombie.
        self._is_waited_for = try_to_start(
            threading.Thread(target=self._process.wait, name="crashproof-alerts", daemon=True)
        )
        self._write(self._watched)

    def _write(self, record: WatchedRun | Send | Finished) -> bool:
        if self._socket is None:
            return False
        line = msgspec.json.encode(record) + b"\n"
        if self._rest:
            self._rest = self._rest[self._write_some(self._rest) :]
            if self._rest:
                return False
        num_written = self._write_some(line)
        if num_written:
            self._rest = line[num_written:]
        return num_written > 0

    def _write_some(self, content: bytes) -> int:
        assert self._socket is not None
        try:
            return self._socket.send(content, getattr(socket, "MSG_NOSIGNAL", 0))
        except OSError:
            # It does not read, or is gone, which `restart_if_dead` finds.
            return 0


def _above_standard(end: socket.socket) -> socket.socket:
    return socket.socket(fileno=above_standard(end.detach()))


def _is_open(file: int) -> bool:
    try:
        os.fstat(file)
    except OSError:
        return False
    return True

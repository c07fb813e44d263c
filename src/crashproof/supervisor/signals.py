"""Signals that a supervisor receives."""

from __future__ import annotations

import os
import select
import signal
from types import FrameType
from typing import Self

__all__ = ["STOP_SIGNALS", "ReceivedSignals"]

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""By them schedulers and people ask a job to save and stop; SLURM's `--signal` names any of them."""


class ReceivedSignals:
    """Context manager that collects stop signals, and waits for them and for children that end."""

    def __init__(self) -> None:
        self._received: list[signal.Signals] = []
        self._read_end, self._write_end = os.pipe()

    def __enter__(self) -> Self:
        os.set_blocking(self._read_end, False)
        os.set_blocking(self._write_end, False)
        self._previous = {each: signal.getsignal(each) for each in (*STOP_SIGNALS, signal.SIGCHLD)}
        self._wakeup = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        for each in STOP_SIGNALS:
            # What `nohup` has made the process ignore is to be ignored.
            if self._previous[each] is not signal.SIG_IGN:
                signal.signal(each, self._handle)
        # A handler and not the default: only what is handled wakes `wait` up.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for each, handler in self._previous.items():
            signal.signal(each, handler)
        os.close(self._read_end)
        os.close(self._write_end)

    def wait(self, seconds: float) -> None:
        """Wait until a signal arrives or a child ends, or for so long."""
        select.select([self._read_end], [], [], max(0.0, seconds))
        try:
            os.read(self._read_end, 4096)
        except BlockingIOError:
            return

    def take(self) -> signal.Signals | None:
        """The oldest signal that was not taken yet."""
        return self._received.pop(0) if self._received else None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._received.append(signal.Signals(number))

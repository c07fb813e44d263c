"""End this process without the help of its interpreter.

Code that keeps Python's lock and never returns stops every thread of Python, and with them whatever could end the
process. So the C library is asked to: its timer (POSIX `timer_create` with `SIGEV_THREAD`) starts a thread that
calls a C function with one argument, `_exit(75)`. Another says why, by `warnx`, a moment before.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import sys
import time
from ctypes.util import find_library

__all__ = ["ForcedExit"]

log = logging.getLogger("crashproof")

_SIGEV_THREAD = 2
_MOST_TEXT_BYTES = 1000
_SECONDS_BETWEEN = 0.5
"""From the text to the exit."""


class ForcedExit:
    """Ends this process with an exit code: now, or unless it is postponed in time.

    Where the system has no such timers, only `now` does anything; `is_timed` tells.
    """

    def __init__(self, exit_code: int) -> None:
        """Nothing ends before `now` or `postpone` is called."""
        self._exit_code = exit_code
        self._text = ctypes.create_string_buffer(2 * _MOST_TEXT_BYTES + 1)
        self._timers: list[ctypes.c_void_p] = []
        try:
            self._library = _c_library()
            self._timers = [
                self._create("warnx", ctypes.addressof(self._text)),
                self._create("_exit", exit_code),
            ]
        except (AttributeError, OSError) as error:
            log.debug("A process that hangs in C code is not ended from inside: %s", error)

    @property
    def is_timed(self) -> bool:
        """Whether this system has such timers."""
        return bool(self._timers)

    def now(self, text: str) -> None:
        """End the process at once, after writing the text, and where each thread stands, to standard error."""
        try:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()
            faulthandler.dump_traceback()
        finally:
            os._exit(self._exit_code)

    def postpone(self, seconds: float, text: str) -> None:
        """End the process this many seconds from now, after writing the text to standard error."""
        # `warnx` takes a format.
        self._text.value = text.encode()[:_MOST_TEXT_BYTES].replace(b"%", b"%%")
        for number, timer in enumerate(self._timers):
            self._set(timer, seconds + number * _SECONDS_BETWEEN)

    def cancel(self) -> None:
        """End nothing."""
        for timer in self._timers:
            self._set(timer, 0.0)

    def _create(self, function: str, argument: int) -> ctypes.c_void_p:
        event = _SignalEvent(
            value=argument,
            notify=_SIGEV_THREAD,
            function=ctypes.cast(getattr(self._library, function), ctypes.c_void_p),
        )
        timer = ctypes.c_void_p()
        if self._library.timer_create(time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)):
            raise OSError(ctypes.get_errno(), "timer_create failed")
        return timer

    def _set(self, timer: ctypes.c_void_p, seconds: float) -> None:
        whole, rest = divmod(seconds, 1)
        setting = _TimerSetting(value=_TimeSpec(int(whole), int(rest * 1e9)))
        self._library.timer_settime(timer, 0, ctypes.byref(setting), None)


class _SignalEvent(ctypes.Structure):
    """`struct sigevent` of Linux on 64 bits, with the members of `SIGEV_THREAD`."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal_number", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("rest", ctypes.c_byte * 32),
    )


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSetting(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


def _c_library() -> ctypes.CDLL:
    """The library with the timers, which had one of its own before glibc 2.34."""
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        raise OSError("the layout of its structures is known for 64 bits")
    library = ctypes.CDLL(None, use_errno=True)
    if hasattr(library, "timer_create"):
        return library
    return ctypes.CDLL(find_library("rt"), use_errno=True)

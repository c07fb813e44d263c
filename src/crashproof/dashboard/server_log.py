"""The server's log, which no flood of requests can fill."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

__all__ = ["LimitedHandler", "describe_error", "limited_log"]

_SECONDS_PER_WINDOW = 60.0
_MOST_LINES_PER_WINDOW = 50
_MOST_CHARACTERS = 1000


class LimitedHandler(logging.StreamHandler[TextIO]):
    """Writes each message at most once a minute, and few lines in all; counts what it leaves out."""

    def __init__(self, stream: TextIO, *, steady: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._steady = steady
        self._window_began_at = steady()
        self._num_written: dict[str, int] = {}
        """The lines of this minute, and how often each was to be written."""
        self._num_others = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it."""
        if self._steady() - self._window_began_at >= _SECONDS_PER_WINDOW:
            self.report()
        line = self.format(record)
        if line in self._num_written:
            self._num_written[line] += 1
        elif len(self._num_written) < _MOST_LINES_PER_WINDOW:
            self._num_written[line] = 1
            self._write(line)
        else:
            self._num_others += 1

    def report(self) -> None:
        """Write how many lines were left out, and begin the next minute."""
        for line, number in self._num_written.items():
            if number > 1:
                self._write(f"{line} ({number - 1:,} more times)")
        if self._num_others:
            self._write(f"crashproof: {self._num_others:,} other messages were not logged: too many in one minute.")
        self._window_began_at = self._steady()
        self._num_written, self._num_others = {}, 0

    def format(self, record: logging.LogRecord) -> str:
        """One line without control characters; an exception is its class, its text and its place."""
        text = record.getMessage().strip()
        if record.exc_info and isinstance(record.exc_info[1], Exception):
            text = f"{text}: {describe_error(record.exc_info[1])}"
        return f"crashproof: {_printable(text[:_MOST_CHARACTERS])}"

    def _write(self, line: str) -> None:
        try:
            self.stream.write(f"{line}\n")
            self.flush()
        except (OSError, ValueError):
            # Nobody reads the log any more, which must not end the server.
            return


@contextmanager
def limited_log(stream: TextIO | None = None) -> Iterator[None]:
    """Write the log of all libraries to a stream (stderr) with limits, as long as the context lasts."""
    handler = LimitedHandler(stream or sys.stderr)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.report()


def describe_error(error: Exception) -> str:
    """An unexpected exception on one line: its class, its text, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)

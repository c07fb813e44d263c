"""How long a process works on a step, without its waits for others.

A stopwatch that stands still wherever other processes are waited for. On the CPU it reads the host's clock. On a CUDA
device it puts events between the kernels and reads them once they have passed, so nothing waits for the device. Its
time is then the device's, at work or idle: a host that is too slow for its device shows as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

import torch

from crashproof.clock import SYSTEM_CLOCK, Clock

__all__ = ["CudaMarks", "HostMarks", "Marks", "OwnTime"]

MarkT = TypeVar("MarkT")

_MILLISECONDS = 1000.0
_MOST_STEPS = 1000
"""Steps that are kept until they are taken: the newest."""


class Marks(Protocol[MarkT]):
    """A clock that can be read later."""

    def now(self) -> MarkT:
        """A mark of this moment."""
        ...

    def seconds(self, start: MarkT, end: MarkT) -> float | None:
        """The time from one mark to a later one; None while the later one has not passed."""
        ...


class HostMarks:
    """The host's clock."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock

    def now(self) -> float:
        """See `Marks.now`."""
        return self._clock.steady()

    def seconds(self, start: float, end: float) -> float:
        """See `Marks.seconds`."""
        return end - start


class CudaMarks:
    """Events of the current stream of a CUDA device."""

    def now(self) -> torch.cuda.Event:
        """See `Marks.now`."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it so.
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float | None:
        """See `Marks.seconds`; it waits for nothing."""
        has_passed = end.query()  # type: ignore[no-untyped-call]  # Likewise.
        return start.elapsed_time(end) / _MILLISECONDS if has_passed else None


class OwnTime(Generic[MarkT]):
    """A stopwatch of steps; it runs from the beginning."""

    def __init__(self, marks: Marks[MarkT]) -> None:
        self._marks = marks
        self._since: MarkT | None = marks.now()
        """None while it stands still."""
        self._parts: list[tuple[MarkT, MarkT]] = []
        self._ended: deque[list[tuple[MarkT, MarkT]]] = deque(maxlen=_MOST_STEPS)
        """Steps whose marks have perhaps not passed yet."""
        self._steps: deque[float] = deque(maxlen=_MOST_STEPS)

    def pause(self) -> None:
        """Stand still from here on."""
        if self._since is not None:
            self._parts.append((self._since, self._marks.now()))
            self._since = None

    def resume(self) -> None:
        """Run from here on."""
        if self._since is None:
            self._since = self._marks.now()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Stand still meanwhile."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def end_step(self) -> None:
        """Begin the next step."""
        self.pause()
        self._ended.append(self._parts)
        self._parts = []
        self._read_passed()
        self.resume()

    def take(self) -> list[float]:
        """The seconds of each step that has ended since the last call, as far as its marks have passed."""
        self._read_passed()
        taken = list(self._steps)
        self._steps.clear()
        return taken

    def _read_passed(self) -> None:
        while self._ended:
            seconds = [self._marks.seconds(start, end) for start, end in self._ended[0]]
            known = [each for each in seconds if each is not None]
            if len(known) < len(seconds):
                return
            self._steps.append(sum(known))
            self._ended.popleft()

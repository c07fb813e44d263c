"""Let a job's output grow while its questions are asked."""

from __future__ import annotations

import logging
import threading
from typing import Self

from crashproof.errors import CrashproofError, StoreUnavailable
from crashproof.teacher.jobs.output import JobOutput
from crashproof.threads import try_to_start

__all__ = ["GrowingOutput"]

log = logging.getLogger("crashproof")

_SECONDS_BETWEEN_LOOKS = 1.0


class GrowingOutput:
    """A thread that writes what is completed; `with GrowingOutput(…)` around the asking.

    Whatever goes wrong in it, the output can be written at the end all the same, and what is wrong shows there.
    """

    def __init__(self, output: JobOutput, *, interval_seconds: float = _SECONDS_BETWEEN_LOOKS) -> None:
        """Nobody else uses the output meanwhile."""
        self._output = output
        self._interval_seconds = interval_seconds
        self._has_to_stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="crashproof-output", daemon=True)

    def __enter__(self) -> Self:
        self._is_started = try_to_start(self._thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._has_to_stop.set()
        if self._is_started:
            self._thread.join()

    def _work(self) -> None:
        while not self._has_to_stop.wait(self._interval_seconds) and self._advance():
            pass

    def _advance(self) -> bool:
        """Write what is completed; returns whether to go on."""
        try:
            self._output.advance(until=self._has_to_stop.is_set)
        except StoreUnavailable as error:
            log.debug("The output does not grow now: %s", error)
        except (CrashproofError, OSError) as error:
            log.warning("The output does not grow any more, and is written at the end instead: %s", error)
            return False
        return True

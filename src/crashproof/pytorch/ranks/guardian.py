"""A process beside each rank that ends it when it is stopped."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from crashproof.pytorch.ranks import guardian_program

__all__ = ["Guardian"]

log = logging.getLogger("crashproof")

_ASKED_SECONDS = 3.0
"""How long a stopped process that was asked to end has to go on: schedulers ask first, and wake it then."""


class Guardian:
    """The process, which ends with the rank or when it is closed."""

    def __init__(self, *, name: str, longest_seconds: float) -> None:
        """Start it; where the system does not tell whether a process is stopped, do nothing."""
        self._process: subprocess.Popen[bytes] | None = None
        if not Path("/proc/self/stat").exists():
            return
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this very package
                # By its path, and isolated: it needs nothing but Python's own modules, and starts in 20 ms.
                [
                    sys.executable,
                    "-I",
                    "-S",
                    guardian_program.__file__,
                    name,
                    str(longest_seconds),
                    str(_ASKED_SECONDS),
                ],
                # It is closed by the rank's end, however that happens.
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                # Who stops or ends the processes of a group means the rank.
                start_new_session=True,
            )
        except OSError as error:
            log.warning("%s has no guardian: if it is stopped, it ends only once it goes on (%s).", name, error)

    def close(self) -> None:
        """End it."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()

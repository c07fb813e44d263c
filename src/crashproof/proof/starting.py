"""Start a command, and kill it where that is planned."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from crashproof.disk.atomic import write_bytes_atomically
from crashproof.disk.files import REAL_DISK
from crashproof.proof.process_tree import kill_tree
from crashproof.proof.watching import SaveWatch, WitnessTail
from crashproof.records.proof.assignment import ASSIGNMENT, LOG, WITNESS, Assignment, Moment, Stop
from crashproof.records.proof.environment import ENVIRONMENT_VARIABLE
from crashproof.records.proof.witness import Seen, Waiting, WitnessLine

__all__ = ["Start", "start_command"]

_POLL_SECONDS, _POLL_SECONDS_IN_A_SAVE = 0.005, 0.0005
_NUM_TAIL_LINES = 20
_MOST_TAIL_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start of the command, from its beginning to its end."""

    name: str
    return_code: int
    """Negative if a signal ended it."""
    was_killed: bool
    """By the proof, as planned."""
    was_too_slow: bool
    """Killed, as it did not end within the limit."""
    seconds: float
    lines: Sequence[WitnessLine]
    """What its tracker saw."""
    output_tail: Sequence[str]
    stop: Stop | None

    @property
    def last_step(self) -> int:
        """The newest step that it reported; 0 if none."""
        return max((each.step for each in self.lines if isinstance(each, Seen)), default=0)


def start_command(
    command: Sequence[str], place: Path, assignment: Assignment, *, limit_seconds: float | None = None
) -> Start:
    """Run a command to its end, or kill it with everything that it started where the assignment says so.

    Raises:
        OSError: there is no such program.
    """
    write_bytes_atomically(place / ASSIGNMENT, msgspec.json.encode(assignment))
    log = REAL_DISK.open_to_append(place / LOG)
    began = time.monotonic()
    try:
        process = subprocess.Popen(  # noqa: S603 - the user's own command
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {ENVIRONMENT_VARIABLE: str(place)},
        )
    finally:
        REAL_DISK.close(log)
    watched = _Watched(process, place, assignment, None if limit_seconds is None else began + limit_seconds)
    try:
        watched.wait()
    finally:
        kill_tree(process.pid)
        process.wait()
    watched.tail.read_new()
    return Start(
        name=place.name,
        return_code=process.returncode,
        was_killed=watched.was_killed,
        was_too_slow=watched.was_too_slow,
        seconds=time.monotonic() - began,
        lines=watched.tail.lines,
        output_tail=_tail_of(place / LOG),
        stop=assignment.stop,
    )


class _Watched:
    """A process until its end, or until it is to be killed."""

    def __init__(
        self, process: subprocess.Popen[bytes], place: Path, assignment: Assignment, deadline: float | None
    ) -> None:
        self.tail = WitnessTail(place / WITNESS)
        self.was_killed = self.was_too_slow = False
        self._process = process
        self._stop = assignment.stop
        self._output_dir = Path(assignment.output_dir)
        self._deadline = deadline
        self._saves = SaveWatch(self._output_dir)
        self._is_near = False
        """Whether the step is done whose save the kill is to come in."""

    def wait(self) -> None:
        """Return once the process has ended, or its time has come."""
        while self._process.poll() is None:
            if self._is_time():
                self.was_killed = True
                return
            if self._deadline is not None and time.monotonic() > self._deadline:
                self.was_too_slow = True
                return
            time.sleep(_POLL_SECONDS_IN_A_SAVE if self._is_near else _POLL_SECONDS)

    def _is_time(self) -> bool:
        if self._stop is None:
            # Nothing is waited for; the lines are read at the end.
            return False
        new = self.tail.read_new()
        if any(isinstance(line, Waiting) for line in new):
            return True
        if self._stop.moment is not Moment.IN_A_SAVE:
            return False
        self._is_near |= any(isinstance(line, Seen) and line.step >= self._stop.step for line in new)
        if self._is_near:
            return self._saves.has_begun()
        # The save may have begun by the time its step is read of.
        self._saves.begin()
        return False


def _tail_of(log: Path) -> list[str]:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _MOST_TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()[-_NUM_TAIL_LINES:]

"""The link of a tracker to the supervisor of its process."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import msgspec

from crashproof.disk.atomic import write_bytes_atomically
from crashproof.disk.supervision.phase_board import PhaseBoard
from crashproof.disk.supervision.stacks import open_stacks_file
from crashproof.errors import StorageError
from crashproof.records.supervision import OpenedRun, Phase

__all__ = ["BOARD_FILE", "FOLDER_VARIABLE", "PHASES", "RUN_FILE", "SupervisorLink"]

log = logging.getLogger("crashproof")

FOLDER_VARIABLE = "CRASHPROOF_SUPERVISOR"
"""The environment variable that names the supervisor's private folder."""
RUN_FILE = "run.json"
BOARD_FILE = "phase"
PHASES: tuple[Phase | None, ...] = (None, *Phase)
"""What the numbers on the board stand for; None: the supervisor infers the phase from the journals."""
_STACKS_SIGNAL = signal.SIGRTMAX - 5 if hasattr(signal, "SIGRTMAX") else None
"""A signal that nothing else uses; macOS has none."""


class SupervisorLink:
    """Tells a supervisor which run its child has opened, and what the child is doing. Never raises."""

    _stacks: TextIO | None = None
    """Stays open as long as the process lives: it may hang after the run was closed."""

    def __init__(self, folder: Path | None) -> None:
        """`folder` is the supervisor's; None: the process is not supervised, and nothing is done."""
        self._folder = folder
        self._board: PhaseBoard | None = None
        self._shown: list[Phase] = []

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> SupervisorLink:
        """The link that an environment names."""
        name = environment.get(FOLDER_VARIABLE)
        return cls(Path(name) if name and os.path.isdir(name) else None)

    def announce(self, progress: Path, attempt: int) -> None:
        """Tell that this process has opened a run."""
        if self._folder is None:
            return
        try:
            self._board = PhaseBoard(self._folder / BOARD_FILE)
            opened = self._opened(progress, attempt)
            write_bytes_atomically(self._folder / RUN_FILE, msgspec.json.encode(opened))
        except (StorageError, OSError) as error:
            self.leave()
            log.warning("The supervisor cannot be told of this run, and sees no hang of it: %s", error)

    def leave(self) -> None:
        """Tell nothing more, as in a forked child."""
        self._folder = self._board = None

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """What the loop does within this context; inside another one, it counts alone."""
        self._shown.append(phase)
        self._show()
        try:
            yield
        finally:
            # The run may have been closed meanwhile.
            if phase in self._shown:
                self._shown.remove(phase)
                self._show()

    def finish(self) -> None:
        """The run is closed; what the process still does is not training."""
        self._shown = [Phase.FINISHING]
        self._show()

    def _show(self) -> None:
        if self._board is not None:
            self._board.show(PHASES.index(self._shown[-1]) if self._shown else 0)

    def _opened(self, progress: Path, attempt: int) -> OpenedRun:
        assert self._folder is not None
        opened = OpenedRun(pid=os.getpid(), progress=str(progress), attempt=attempt)
        if _STACKS_SIGNAL is None or threading.current_thread() is not threading.main_thread():
            return opened
        path = self._folder / f"stacks-{os.getpid()}.txt"
        if SupervisorLink._stacks is None:
            SupervisorLink._stacks = open_stacks_file(path)
            # A handler in C: it runs even while other C code keeps the interpreter to itself.
            faulthandler.register(_STACKS_SIGNAL, file=SupervisorLink._stacks, all_threads=True)
        return msgspec.structs.replace(opened, stacks_signal=int(_STACKS_SIGNAL), stacks_file=str(path))

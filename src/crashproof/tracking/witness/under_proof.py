"""Take part in a proof: tell what was seen, and wait to be killed."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from crashproof.disk.files import Disk
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import ConfigError
from crashproof.records.proof.assignment import ASSIGNMENT, WITNESS, Assignment, Moment
from crashproof.records.proof.witness import Refused, RunOpened, Seen, Waiting, WitnessLine
from crashproof.tracking.witness.leaves import leaves_of
from crashproof.tracking.witness.random_states import random_states
from crashproof.tracking.witness.samples import samples_of

__all__ = ["UnderProof"]

log = logging.getLogger("crashproof")

_POLL_SECONDS = 0.05
_BATCH = "batch"
_QUICK_SECONDS = 5.0
"""What digests may take without being compared with the training's own time."""


class UnderProof:
    """Writes what a step has left behind, and waits where the run is to be killed."""

    def __init__(self, place: Path, *, disk: Disk) -> None:
        self._assignment = msgspec.json.decode((place / ASSIGNMENT).read_bytes(), type=Assignment)
        self._disk = disk
        self._file = disk.open_to_append(place / WITNESS)
        self._step: int | None = None
        """Of the newest update of this process."""
        self._is_ahead = False
        """Whether the loop shows a step before it reports it."""
        self._held: dict[str, object] = {}
        self._num_updates = 0
        self._began, self._digesting_seconds = time.monotonic(), 0.0

    def open(self, folder: RunFolder, config_hash: str) -> None:
        """Tell where the run lies.

        Raises:
            ConfigError: outside of the proof's folder.
        """
        if not folder.progress.resolve().is_relative_to(Path(self._assignment.output_dir).resolve()):
            self._tell(Refused(progress=str(folder.progress)))
            raise ConfigError(
                f"{folder.root} lies outside of {self._assignment.output_dir}, where a proof is under way.",
                hint="Pass the output folder that `crashproof prove` puts in place of {output_dir} to the tracker.",
            )
        self._tell(RunOpened(progress=str(folder.progress), config_hash=config_hash))

    def before_update(self) -> None:
        """Wait to be killed, if it is time: the steps up to the last one are done and shown."""
        stop = self._assignment.stop
        if stop is None or self._step is None or stop.moment is Moment.IN_A_SAVE:
            return
        if stop.moment is Moment.AFTER_A_RESUME:
            if self._num_updates >= stop.num_updates:
                self._wait()
        elif self._step >= stop.step:
            self._wait()

    def after_update(self, step: int) -> None:
        """Tell the random states of a step that was reported, and what was shown of it before."""
        self._step = step
        self._num_updates += 1
        held, self._held = self._held, {}
        self._tell(Seen(step=step, values=random_states()))
        if held:
            self._show(step, held)

    def before_save(self, step: int) -> None:
        """Wait to be killed, if it is time: the checkpoint is written, and not recorded."""
        stop = self._assignment.stop
        if stop is not None and stop.moment is Moment.IN_A_SAVE and step >= stop.step:
            self._step = step
            self._wait()

    def show(self, components: Mapping[str, object]) -> None:
        """Tell what a step has left behind: digests of everything, by name."""
        if self._step is None:
            self._is_ahead = True
        if self._is_ahead:
            self._held |= components
        elif self._step is not None:
            self._show(self._step, components)

    def _show(self, step: int, components: Mapping[str, object]) -> None:
        began = time.monotonic()
        state = {name: each for name, each in components.items() if name != _BATCH and each is not None}
        leaves = leaves_of(state if self._is_full(step) else {})
        samples = samples_of(components[_BATCH]) if components.get(_BATCH) is not None else None
        self._tell(Seen(step=step, values=leaves.values, samples=samples, unreadable=leaves.unreadable))
        self._digesting_seconds += time.monotonic() - began

    def _is_full(self, step: int) -> bool:
        if self._assignment.full_steps is not None:
            return step in self._assignment.full_steps
        is_quick = self._digesting_seconds <= _QUICK_SECONDS
        return is_quick or 2 * self._digesting_seconds <= time.monotonic() - self._began

    def _wait(self) -> None:
        self._tell(Waiting(step=self._step or 0))
        while _is_alive(self._assignment.prover):
            time.sleep(_POLL_SECONDS)
        log.warning("The proof is over: crashproof prove has ended. The training goes on.")
        self._assignment = msgspec.structs.replace(self._assignment, stop=None)

    def _tell(self, line: WitnessLine) -> None:
        self._disk.write(self._file, msgspec.json.encode(line) + b"\n")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        # Another user's process is one as well.
        return error.errno == errno.EPERM
    return True

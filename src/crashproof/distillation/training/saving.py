"""Save training state in the background.

The loop waits only while the state is copied to the host's memory. A thread digests, writes and syncs it, and records
it in the manifest; one save runs at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from crashproof.checkpoints.digest import Digest
from crashproof.checkpoints.partials import sweep_partial_checkpoints
from crashproof.disk.atomic import WholeFile
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.disk.run_folder import RunFolder
from crashproof.distillation.settings.progress import ProgressConfig
from crashproof.distillation.training.save_retries import SaveRetries
from crashproof.distillation.training.training_state import TrainingState, size_of
from crashproof.errors import DiskFull, SavesFailed, StorageError
from crashproof.formatting import as_bytes, as_duration
from crashproof.notices import Notices
from crashproof.pytorch.background_task import BackgroundTask
from crashproof.pytorch.checkpoint_file import save_checkpoint
from crashproof.pytorch.coordination.acting_together import act_together
from crashproof.pytorch.ranks import DistributedRanks, Ranks
from crashproof.pytorch.sharded_checkpoint import save_shards
from crashproof.pytorch.staging.copier import StateCopier
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.rules.saves.failures import is_last_chance
from crashproof.rules.saves.room import checkpoints_to_come
from crashproof.tracking.context import TrainingProgressContext

__all__ = ["CheckpointSaver"]

log = logging.getLogger("crashproof")

_SPARE_SHARE = 0.05
"""Added to a checkpoint's size, for names, headers, and the journals beside it."""


class CheckpointSaver:
    """Writes checkpoints of one training state, from all of its processes."""

    def __init__(
        self,
        state: TrainingState,
        context: TrainingProgressContext,
        output_dir: Path,
        ranks: Ranks,
        *,
        settings: ProgressConfig,
        is_stop_requested: Callable[[], bool] = lambda: False,
        disk: Disk = REAL_DISK,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
        copier: StateCopier | None = None,
    ) -> None:
        """Every process has a saver. With `saves_behind` of the settings, training continues during a save."""
        self.saved_step = state.counters.step
        """The step of the newest acknowledged checkpoint, or the step at which training began."""
        self._has_checkpoint = state.counters.step > 0
        self._state = state
        self._context = context
        self._folder = RunFolder.under(output_dir)
        # The thread waits for other processes apart from the loop.
        self._ranks = ranks.for_background_thread()
        self._settings = settings
        self._is_stop_requested = is_stop_requested
        self._disk = disk
        self._sleep, self._now = sleep, now
        self._background = BackgroundTask("crashproof-save")
        self._started_step = -1
        self._failed_step = -1
        self._num_failed = 0
        """Saves of different steps that have failed since the newest checkpoint; the same on all processes."""
        self._notices = Notices()
        self._copier = copier or StateCopier()

    def require_room(self, *, num_saves: int | None = None) -> None:
        """Refuse to train what could not be saved even once, as far as the free space tells.

        Warns if the disk does not hold all checkpoints that will lie on it at the same time; `num_saves` are those
        until the end of the run, where that is known.

        Raises:
            DiskFull: Names what is needed and what is free.
        """
        self._sweep()
        self._require_room(self._folder.root, size_of(self._state.tensors()))
        if self._ranks.is_main:
            self._warn_of_room(num_saves)

    def prepare(self) -> None:
        """Make the memory that saves copy the state to, in the background; the first save waits until it is made."""
        self._wait_for_last()
        tensors = self._state.tensors()
        self._background.start(lambda: self._copier.prepare(tensors))

    def _warn_of_room(self, num_saves: int | None) -> None:
        tracker = self._context.tracker
        num_present = 0 if tracker is None else len(CheckpointCatalog(tracker.session))
        keep = self._settings.keep
        to_come = checkpoints_to_come(num_saves=num_saves, most_kept=keep.most(), num_present=num_present)
        needed = round((to_come or 1) * size_of(self._state.tensors()) * (1 + _SPARE_SHARE))
        free = self._disk.free_bytes(self._folder.root)
        if free < needed:
            log.warning(
                "The disk does not hold the %s checkpoints to come: %s are needed, %s are free. Free space, or keep "
                "fewer (progress.keep); later saves will fail.",
                f"{to_come:,}",
                as_bytes(needed),
                as_bytes(free),
            )

    def save(self) -> None:
        """Start a checkpoint of the current state, between two steps.

        If it cannot be saved, it is skipped with a warning, and training continues. Once as many saves in a row have
        failed as the settings allow, training waits for this one, which is tried again for a limited time.

        Raises:
            SavesFailed: It could not be saved in that time either.
            RankLost: A process died while saving.
        """
        self._wait_for_last()
        if is_last_chance(self._num_failed, self._settings.max_failed_saves):
            self._insist()
            return
        is_copied = self._start()
        if not (is_copied and self._settings.saves_behind):
            self._wait_for_last()

    def check(self) -> None:
        """Report the last save if it has failed; called after each step.

        Raises:
            RankLost: a process died while saving.
        """
        try:
            self._background.raise_failure()
        except (StorageError, OSError) as error:
            self._skip(error)

    def finish(self) -> None:
        """Wait until the newest step is in a checkpoint; a save that fails is tried again for a limited time.

        Raises:
            SavesFailed: It could not be saved in that time.
            RankLost: A process died while saving.
        """
        self._wait_for_last()
        if self._state.counters.step > self.saved_step:
            self._insist()

    def close(self) -> None:
        """Wait for a running save."""
        self._background.close()
        self._copier.close()

    def _wait_for_last(self) -> None:
        try:
            self._wait()
        except (StorageError, OSError) as error:
            self._skip(error)

    def _wait(self) -> None:
        with self._context.phase("saving"):
            self._background.wait()

    def _skip(self, error: StorageError | OSError) -> None:
        """Go on without the last save. Processes may notice its failure a few steps apart, so they decide nothing."""
        self._count(error)
        in_a_row = f" {self._num_failed} saves in a row have failed." if self._num_failed > 1 else ""
        if self._ranks.is_main:
            log.warning("A checkpoint was skipped: %s Training continues.%s", error, in_a_row)

    def _count(self, error: StorageError | OSError) -> None:
        if self._started_step != self._failed_step:
            self._failed_step, self._num_failed = self._started_step, self._num_failed + 1
        self._context.record_checkpoint_failure(self._started_step, error)

    def _insist(self) -> None:
        """Save the newest step now, and again for a limited time where that fails."""
        retries = SaveRetries(
            self._ranks,
            limit_seconds=self._settings.last_save_seconds,
            is_stop_requested=self._is_stop_requested,
            sleep=self._sleep,
            now=self._now,
        )
        while True:
            self._start()
            try:
                self._wait()
            except (StorageError, OSError) as error:
                self._count(error)
                self._tell_once(error)
                if not retries.wait():
                    raise self._given_up(error, retries.seconds) from error
            else:
                return

    def _tell_once(self, error: StorageError | OSError) -> None:
        if self._ranks.is_main:
            self._notices.warn(
                f"step {self._started_step}",
                "Step %s could not be saved: %s Training waits, and tries again for up to %s.",
                f"{self._started_step:,}",
                error,
                as_duration(self._settings.last_save_seconds),
            )

    def _given_up(self, error: StorageError | OSError, seconds: float) -> SavesFailed:
        return SavesFailed(
            step=self._started_step,
            num_failed=self._num_failed,
            error=error,
            saved_step=self.saved_step if self._has_checkpoint else None,
            tried_seconds=seconds,
        )

    def _path(self, step: int) -> Path:
        return self._folder.root / (f"checkpoint_{step}" if self._ranks.num_ranks > 1 else f"checkpoint_{step}.pt")

    def _start(self) -> bool:
        """Copy the state, and write it in the background.

        Return whether it is a copy: where there is no memory for one, the state itself is written, and must not
        change meanwhile.
        """
        started_at = time.monotonic()
        step, samples = self._state.counters.step, self._state.counters.samples
        self._started_step = step
        path, state = self._path(step), self._state.tensors()
        # Its memory is reused by the next save.
        copied = self._copier.copy(state)
        tensors = state if copied is None else copied
        own, shared = self._state.own_values(), self._state.shared_values()
        copy_seconds = time.monotonic() - started_at

        def write() -> None:
            write_started_at = time.monotonic()
            self._sweep()
            self._require_room(path, size_of(tensors))
            written = self._write(path, step, tensors, own, shared)
            write_seconds = 0.0 if self._settings.saves_behind else time.monotonic() - write_started_at
            self._record(step, path, samples, written, copy_seconds + write_seconds, time.monotonic() - started_at)
            self.saved_step, self._has_checkpoint, self._num_failed = step, True, 0

        self._background.start(write)
        return copied is not None

    def _sweep(self) -> None:
        """Remove what failed saves have left, so that it does not take the space of the next one."""
        if not self._ranks.is_main:
            return
        try:
            sweep_partial_checkpoints(self._folder, disk=self._disk)
        except OSError as error:
            self._notices.warn("partials", "What a failed save has left cannot be removed yet: %s", error)

    def _require_room(self, path: Path, num_bytes: int) -> None:
        """Refuse before anything is written; the disk may still fill up during the save."""
        needed = round(num_bytes * (1 + _SPARE_SHARE))

        def look() -> None:
            free = self._disk.free_bytes(self._folder.root)
            if free < needed:
                raise DiskFull(path, needed_bytes=needed, free_bytes=free)

        act_together(self._ranks, f"checking free space for {path.name}", look, only_main=True)

    def _write(
        self, path: Path, step: int, tensors: dict[str, Tensor], own: dict[str, Any], shared: dict[str, Any]
    ) -> WholeFile | Digest:
        if isinstance(self._ranks, DistributedRanks):
            make_way = partial(self._make_way, path, step)
            return save_shards(path, tensors, own, shared, self._ranks, make_way=make_way, disk=self._disk)
        return save_checkpoint(path, {**shared, "tensors": tensors, "own": own}, disk=self._disk)

    def _make_way(self, path: Path, step: int) -> None:
        """Move an older folder of that name away: training has gone back, or a kill came before its record."""
        if path.exists() and self._context.tracker is not None:
            self._context.tracker.quarantine_checkpoint(path, step, "the step is saved again")

    def _record(
        self,
        step: int,
        path: Path,
        samples: int,
        written: WholeFile | Digest,
        stalled_seconds: float,
        save_seconds: float,
    ) -> None:
        """Record a durable checkpoint in the manifest; where that fails, it counts as failed on all processes."""

        def record() -> None:
            self._context.record_checkpoint(
                step,
                path,
                samples,
                is_best=None,
                written=written,
                seconds=stalled_seconds,
                save_seconds=save_seconds,
            )

        act_together(self._ranks, f"recording {path.name}", record, only_main=True)

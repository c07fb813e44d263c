"""Save training state in the background.

The loop waits only while the state is copied to the host's memory. A thread hashes, writes and syncs it, and records
it in the manifest; one save runs at a time.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from crashproof.checkpoints.digest import Digest
from crashproof.disk.atomic import WholeFile
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.distillation.training.training_state import TrainingState
from crashproof.errors import DiskFull, StorageError
from crashproof.pytorch.background_task import BackgroundTask
from crashproof.pytorch.checkpoint_file import save_checkpoint
from crashproof.pytorch.ranks import DistributedRanks, Ranks
from crashproof.pytorch.sharded_checkpoint import save_shards
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
        in_background: bool,
        disk: Disk = REAL_DISK,
    ) -> None:
        """With `in_background`, training continues while a checkpoint is written. Every process has a saver."""
        self.saved_step = state.counters.step
        """The step of the newest acknowledged checkpoint, or the step at which training began."""
        self._state = state
        self._context = context
        self._output_dir = output_dir
        # The thread waits for other processes apart from the loop.
        self._ranks = ranks.for_background_thread()
        self._in_background = in_background
        self._disk = disk
        self._background = BackgroundTask("crashproof-save")
        has_device = torch.cuda.is_available()
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=has_device,
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=has_device,
            )
        )

    def save(self) -> None:
        """Start a checkpoint of the current state, between two steps.

        If the disk is full, the checkpoint is skipped with a warning, and training continues.
        """
        started_at = time.monotonic()
        self._wait_for_last()
        step, samples = self._state.counters.step, self._state.counters.samples
        path = self._output_dir / (f"checkpoint_{step}" if self._ranks.num_ranks > 1 else f"checkpoint_{step}.pt")
        num_bytes = self._state.num_bytes()
        # The stager's memory is reused by the next save.
        tensors = cast(dict[str, Any], self._stager.stage(self._state.tensors()))
        own, shared = self._state.own_values(), self._state.shared_values()
        copy_seconds = time.monotonic() - started_at

        def write() -> None:
            write_started_at = time.monotonic()
            self._require_room(path, num_bytes)
            written = self._write(path, tensors, own, shared)
            write_seconds = 0.0 if self._in_background else time.monotonic() - write_started_at
            stalled_seconds = copy_seconds + write_seconds
            # Recorded in the manifest only once it is durable.
            self._context.record_checkpoint(
                step, path, samples, is_best=None, written=written, seconds=stalled_seconds
            )
            self.saved_step = step

        self._background.start(write)
        if not self._in_background:
            self._wait_for_last()

    def check(self) -> None:
        """Report the last save if it has failed; called after each step.

        Raises:
            RankLost: a process died while saving.
        """
        try:
            self._background.raise_failure()
        except StorageError as error:
            self._report_skipped(error)

    def finish(self) -> None:
        """Wait until the newest step is in a checkpoint.

        Raises:
            DiskFull, StorageUnwritable: it could not be saved.
            RankLost: a process died while saving.
        """
        self._wait_for_last()
        if self._state.counters.step > self.saved_step:
            self.save()
            self._background.wait()

    def close(self) -> None:
        """Wait for a running save."""
        self._background.close()
        self._stager.close()

    def _wait_for_last(self) -> None:
        try:
            self._background.wait()
        except StorageError as error:
            self._report_skipped(error)

    def _report_skipped(self, error: StorageError) -> None:
        if self._ranks.is_main:
            log.warning("A checkpoint was skipped: %s Training continues.", error)

    def _require_room(self, path: Path, num_bytes: int) -> None:
        """Refuse before anything is written; the disk may still fill up during the save."""
        free = self._disk.free_bytes(self._output_dir)
        needed = round(num_bytes * (1 + _SPARE_SHARE))
        failure = (needed, free) if self._ranks.is_main and free < needed else None
        if failure := self._ranks.broadcast(failure, f"checking free space for {path.name}"):
            raise DiskFull(path, needed_bytes=failure[0], free_bytes=failure[1])

    def _write(
        self, path: Path, tensors: dict[str, Any], own: dict[str, Any], shared: dict[str, Any]
    ) -> WholeFile | Digest:
        if isinstance(self._ranks, DistributedRanks):
            return save_shards(path, tensors, own, shared, self._ranks, disk=self._disk)
        return save_checkpoint(path, {**shared, "tensors": tensors, "own": own}, disk=self._disk)

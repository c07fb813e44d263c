"""Save training state behind the training.

The loop stands still while the state is copied to the host's memory. Digesting, writing and syncing it, and naming it
in the manifest, happen in a thread; one save at a time is under way.
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
from crashproof.pytorch.ranks import ManyRanks, Ranks
from crashproof.pytorch.sharded_checkpoint import save_shards
from crashproof.tracking.context import TrainingProgressContext

__all__ = ["CheckpointSaver"]

log = logging.getLogger("crashproof")

_SPARE_SHARE = 0.05
"""Of a checkpoint's size: names, headers, and the journals beside it."""


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
        """With `in_background`, the training goes on while a checkpoint is written. Every process makes one."""
        self.saved_step = state.counters.step
        """The newest step that is in an acknowledged checkpoint, or was when training began."""
        self._state = state
        self._context = context
        self._output_dir = output_dir
        # The thread's waits for other processes must not mix with those of the loop.
        self._ranks = ranks.beside()
        self._is_behind = in_background
        self._disk = disk
        self._behind = BackgroundTask("crashproof-save")
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
        """Begin a checkpoint of this moment, between two steps.

        With a full disk it is left out, in words, and training goes on.
        """
        begun_at = time.monotonic()
        self._end_last()
        step, samples = self._state.counters.step, self._state.counters.samples
        path = self._output_dir / (f"checkpoint_{step}" if self._ranks.num_ranks > 1 else f"checkpoint_{step}.pt")
        num_bytes = self._state.num_bytes()
        # Reused from save to save.
        tensors = cast(dict[str, Any], self._stager.stage(self._state.tensors()))
        own, shared = self._state.own_values(), self._state.shared_values()
        seconds = time.monotonic() - begun_at

        def write() -> None:
            began_at = time.monotonic()
            self._require_room(path, num_bytes)
            written = self._written(path, tensors, own, shared)
            stood_still = seconds if self._is_behind else seconds + time.monotonic() - began_at
            # Named in the manifest once it is durable, and not before.
            self._context.record_checkpoint(step, path, samples, is_best=None, written=written, seconds=stood_still)
            self.saved_step = step

        self._behind.start(write)
        if not self._is_behind:
            self._end_last()

    def tell(self) -> None:
        """After each step: say how the last save went, if it is over; its failures surface here.

        Raises:
            RankLost: a process died while saving.
        """
        try:
            self._behind.tell()
        except StorageError as error:
            self._say_left_out(error)

    def finish(self) -> None:
        """Wait until the newest step is in a checkpoint.

        Raises:
            DiskFull, StorageUnwritable: it could not be saved.
            RankLost: a process died while saving.
        """
        self._end_last()
        if self._state.counters.step > self.saved_step:
            self.save()
            self._behind.wait()

    def close(self) -> None:
        """Let a save under way come to its end."""
        self._behind.close()
        self._stager.close()

    def _end_last(self) -> None:
        try:
            self._behind.wait()
        except StorageError as error:
            self._say_left_out(error)

    def _say_left_out(self, error: StorageError) -> None:
        if self._ranks.is_main:
            log.warning("A checkpoint was left out: %s Training goes on.", error)

    def _require_room(self, path: Path, num_bytes: int) -> None:
        """Refuse before anything is written; the disk may fill up all the same."""
        free = self._disk.free_bytes(self._output_dir)
        needed = round(num_bytes * (1 + _SPARE_SHARE))
        failure = (needed, free) if self._ranks.is_main and free < needed else None
        if failure := self._ranks.from_main(failure, f"looking for room for {path.name}"):
            raise DiskFull(path, needed_bytes=failure[0], free_bytes=failure[1])

    def _written(
        self, path: Path, tensors: dict[str, Any], own: dict[str, Any], shared: dict[str, Any]
    ) -> WholeFile | Digest:
        if isinstance(self._ranks, ManyRanks):
            return save_shards(path, tensors, own, shared, self._ranks, disk=self._disk)
        return save_checkpoint(path, {**shared, "tensors": tensors, "own": own}, disk=self._disk)

"""Digest large checkpoints in the background."""

from __future__ import annotations

import logging
from concurrent import futures
from functools import partial
from pathlib import Path

from crashproof.checkpoints.digest import Digest, digest_of, stats_of
from crashproof.disk.run_folder import RunFolder
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.threads import run_or_submit

__all__ = ["BackgroundDigests"]

log = logging.getLogger("crashproof")


class BackgroundDigests:
    """Read back and digest one checkpoint after the other in a background thread."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._pool: futures.ThreadPoolExecutor | None = None
        self._running: list[tuple[CheckpointMetadata, futures.Future[Digest | None]]] = []
        self._returned: list[tuple[CheckpointMetadata, Digest]] = []

    def start(self, checkpoint: CheckpointMetadata) -> None:
        """Queue a checkpoint; returns at once, except where no thread can be started."""
        if self._pool is None:
            self._pool = futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="crashproof-digest")
        path = self._folder.find(checkpoint.checkpoint_path)
        self._running.append((checkpoint, run_or_submit(self._pool, partial(_digest_unchanged, checkpoint, path))))

    def take_finished(self) -> list[tuple[CheckpointMetadata, Digest]]:
        """Return those finished since the last call; log and leave out what has changed meanwhile."""
        done = [each for each in self._running if each[1].done()]
        self._running = [each for each in self._running if each not in done]
        returned, self._returned = self._returned, []
        return returned + [
            (checkpoint, digest)
            for checkpoint, future in done
            if _is_usable(checkpoint, future) and (digest := future.result()) is not None
        ]

    def put_back(self, finished: list[tuple[CheckpointMetadata, Digest]]) -> None:
        """Return those that could not be recorded, for the next call of `take_finished`."""
        self._returned = [*finished, *self._returned]

    def wait(self) -> None:
        """Wait until all are finished."""
        futures.wait([future for _, future in self._running])

    def close(self) -> None:
        """End the thread."""
        if self._pool is not None:
            self._pool.shutdown()


def _digest_unchanged(checkpoint: CheckpointMetadata, path: Path) -> Digest | None:
    """Digest what was recorded; None if it was changed since, before or while it was read."""
    names = checkpoint.stats or None
    if checkpoint.stats and stats_of(path, names) != checkpoint.stats:
        return None
    digest = digest_of(path, names)
    return None if checkpoint.stats and stats_of(path, names) != checkpoint.stats else digest


def _is_usable(checkpoint: CheckpointMetadata, future: futures.Future[Digest | None]) -> bool:
    error = future.exception()
    if error is not None:
        log.warning("Could not read %s back (%s); it stays unverified.", checkpoint.checkpoint_path, error)
        return False
    digest = future.result()
    if digest is None or digest.num_bytes != checkpoint.num_bytes:
        log.warning("%s changed after it was recorded; it stays unverified.", checkpoint.checkpoint_path)
        return False
    return True

"""Digest large checkpoints behind the training."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor, wait

from crashproof.checkpoints.digest import Digest, digest_of
from crashproof.disk.run_folder import RunFolder
from crashproof.records.checkpoints import CheckpointMetadata

__all__ = ["BackgroundDigests"]

log = logging.getLogger("crashproof")


class BackgroundDigests:
    """One checkpoint after the other is read back and digested in a thread of its own."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._pool: ThreadPoolExecutor | None = None
        self._running: list[tuple[CheckpointMetadata, Future[Digest]]] = []

    def start(self, checkpoint: CheckpointMetadata) -> None:
        """Begin with a checkpoint; returns at once."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="crashproof-digest")
        path = self._folder.find(checkpoint.checkpoint_path)
        self._running.append((checkpoint, self._pool.submit(digest_of, path)))

    def finished(self) -> list[tuple[CheckpointMetadata, Digest]]:
        """Those that are done since the last question; one that changed meanwhile is reported and left out."""
        done = [each for each in self._running if each[1].done()]
        self._running = [each for each in self._running if each not in done]
        return [(checkpoint, future.result()) for checkpoint, future in done if _is_usable(checkpoint, future)]

    def wait(self) -> None:
        """Wait for all of them."""
        wait([future for _, future in self._running])

    def close(self) -> None:
        """End the thread."""
        if self._pool is not None:
            self._pool.shutdown()


def _is_usable(checkpoint: CheckpointMetadata, future: Future[Digest]) -> bool:
    error = future.exception()
    if error is not None:
        log.warning("%s could not be read back (%s): it stays unverified.", checkpoint.checkpoint_path, error)
        return False
    if future.result().num_bytes != checkpoint.num_bytes:
        log.warning("%s changed after it was recorded: it stays unverified.", checkpoint.checkpoint_path)
        return False
    return True

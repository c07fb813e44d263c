"""Remove checkpoints that are not kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.session import TrainingSession
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.tracking.checkpoint_recorder import CheckpointRecorder, Stale
from crashproof.tracking.run_guard import RunGuard
from crashproof.tracking.run_writer import RunWriter

__all__ = ["CheckpointRemoval"]


class CheckpointRemoval:
    """Deletes checkpoints, and the bytes kept of overwritten ones; any thread may call it, without a lock."""

    def __init__(self, writer: RunWriter, guard: RunGuard, checkpoints: CheckpointRecorder) -> None:
        self._writer = writer
        self._guard = guard
        self._checkpoints = checkpoints

    def keep_previous(self, acknowledged: list[CheckpointMetadata], *, is_replaced: bool) -> None:
        """Keep the bytes of checkpoints that the next save overwrites, then drop those that they replace."""
        if not acknowledged:
            return
        with self._guard.removal_lock:
            for each in acknowledged:
                self._writer.keep_trying(
                    partial(self._checkpoints.keep_previous, each, is_replaced=is_replaced),
                    trouble=f"no copy of {each.checkpoint_path} is kept while the next save overwrites it",
                )
            with self._guard.lock:
                session = self._writer.session_as_of_now()
            self._writer.keep_trying(
                partial(self._checkpoints.drop_previous, session),
                trouble="earlier bytes of checkpoints cannot be removed from progress/previous/",
            )

    def remove(self, choose: Callable[[TrainingSession], Stale | None]) -> bool:
        """Remove the checkpoints that `choose` returns; return whether any were taken out of the manifest."""
        with self._guard.removal_lock:
            with self._guard.lock:
                session = self._writer.session_as_of_now()
            # Outside the lock: reading and deleting gigabytes takes a while.
            stale = choose(session)
            if stale is None:
                return False
            forgotten = self._forget(stale)
            if forgotten is None:
                return False
            self._writer.keep_trying(
                partial(self._checkpoints.delete_removed, forgotten),
                trouble="checkpoints that are no longer kept cannot be deleted",
            )
            with self._guard.lock:
                if self._guard.is_open():
                    self._checkpoints.keep_deletion()
            known = CheckpointCatalog(forgotten).all()
            return any(each not in known for each in stale.checkpoints)

    def _forget(self, stale: Stale) -> TrainingSession | None:
        """Take checkpoints out of the manifest; None where that cannot be recorded now, or the run is closed."""
        forgotten: list[TrainingSession] = []

        def forget() -> None:
            with self._guard.lock:
                if self._guard.is_open():
                    forgotten.append(self._checkpoints.forget(stale))

        trouble = "no checkpoint is removed that the retention rule does not keep, as that cannot be recorded"
        self._writer.keep_trying(forget, trouble=trouble)
        return forgotten[0] if forgotten else None

"""Record checkpoints, offer them for recovery, and remove old ones."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import UNSET, UnsetType

from crashproof.checkpoints.added_files import log_added_files, rescue_added_files
from crashproof.checkpoints.background_hashing import BackgroundDigests
from crashproof.checkpoints.delete import delete_removed, find_undeleted, is_removable
from crashproof.checkpoints.digest import Digest, digest_of, make_durable, stats_of
from crashproof.checkpoints.on_record import recorded_names, settled, stats_as_written
from crashproof.checkpoints.previous import drop_previous, is_kept, is_overwritten, keep_previous
from crashproof.checkpoints.quarantine import quarantine
from crashproof.checkpoints.select import ResumePoint, newest_intact
from crashproof.checkpoints.verify import is_damaged
from crashproof.clock import Clock
from crashproof.disk.atomic import WholeFile
from crashproof.disk.files import Disk
from crashproof.disk.run_folder import is_remote
from crashproof.errors import CrashproofError, InvalidMetric, StorageError
from crashproof.plain_values import as_text
from crashproof.records.checkpoints import CheckpointMetadata, FileStat, RemovedCheckpoint
from crashproof.records.events import (
    CheckpointFailed,
    CheckpointHashed,
    CheckpointRecorded,
    CheckpointRemoved,
    CheckpointsDeleted,
    ResumeChosen,
)
from crashproof.records.session import TrainingSession
from crashproof.rules.bad_steps.reaction import is_bad_at
from crashproof.rules.checkpoint_catalog import BAD_LOSS, CheckpointCatalog, with_evaluation
from crashproof.rules.retention import RetentionRule, stale_checkpoints
from crashproof.rules.secrets.texts import without_secrets
from crashproof.rules.session import update_at
from crashproof.scalars import as_int
from crashproof.tracking.run_writer import RunWriter

__all__ = ["CheckpointRecorder", "Stale"]

log = logging.getLogger("crashproof")

BEST = "best_loss"


class Stale(msgspec.Struct, frozen=True, kw_only=True):
    """Checkpoints to remove, and the newer one that replaces them."""

    checkpoints: list[CheckpointMetadata]
    verified: CheckpointMetadata
    """Read back from the disk, and found intact."""


class CheckpointRecorder:
    """Keeps the manifest. Not thread-safe: its owner locks, except around calls that say that they need no lock."""

    def __init__(self, writer: RunWriter, *, large_checkpoint_bytes: int, clock: Clock, disk: Disk) -> None:
        self._writer = writer
        self._large_checkpoint_bytes = large_checkpoint_bytes
        self._clock = clock
        self._disk = disk
        self._digests = BackgroundDigests(writer.run.folder)
        self._num_failed = 0
        """Saves of this attempt that have failed since its newest checkpoint, at different steps."""
        self._failed_step: int | None = None

    def describe(
        self,
        step: int,
        checkpoint_path: str | Path,
        dataset_position: int,
        recovery_tags: Iterable[str] | None,
        written: WholeFile | Digest | None,
    ) -> CheckpointMetadata:
        """Make a checkpoint durable, and return its entry for the manifest; takes long, and needs no lock."""
        path = Path(checkpoint_path)
        folder = self._writer.run.folder
        if folder.progress.resolve().is_relative_to(path.resolve()):
            raise InvalidMetric(
                f"{path} holds the run's own files and cannot be a checkpoint of it.",
                hint="Save each checkpoint in a folder of its own under the output folder.",
            )
        lies_elsewhere = is_remote(str(checkpoint_path))
        checkpoint = CheckpointMetadata(
            checkpoint_step=as_int(step, "step"),
            checkpoint_path=str(checkpoint_path) if lies_elsewhere else self._writer.run.folder.recorded_path(path),
            created_at=self._clock.now(),
            metrics=None,
            dataset_position=as_int(dataset_position, "dataset_position"),
            recovery_tags=_tags(recovery_tags),
            attempt=self._writer.run.attempt,
        )
        if written is not None:
            files = written.files if isinstance(written, Digest) else None
            return msgspec.structs.replace(
                checkpoint,
                num_bytes=written.num_bytes,
                digest=written.digest,
                files=files,
                verified=stats_as_written(path, recorded_names(files), now=self._clock.now()),
            )
        if lies_elsewhere or not path.exists():
            log.warning("%s is not on this disk: it is recorded, but cannot be verified.", checkpoint_path)
            return checkpoint
        make_durable(path, disk=self._disk)
        stats = stats_of(path)
        num_bytes = sum(each.num_bytes for each in stats.values())
        if num_bytes >= self._large_checkpoint_bytes:
            return msgspec.structs.replace(checkpoint, num_bytes=num_bytes, stats=stats)
        # Settled before the first byte is read: what is written from now on shows in the times.
        verified = settled(stats, now=self._clock.now())
        digest = digest_of(path)
        return msgspec.structs.replace(
            checkpoint,
            num_bytes=digest.num_bytes,
            digest=digest.digest,
            files=digest.files,
            verified=verified if stats_of(path) == stats else UNSET,
        )

    def record(
        self,
        checkpoint: CheckpointMetadata,
        *,
        seconds: float,
        save_seconds: float | None = None,
        is_best: bool | None = False,
    ) -> CheckpointMetadata:
        """Add a durable checkpoint to the journal and the manifest, with the metrics of its step."""
        session = self._writer.session
        catalog = CheckpointCatalog(session)
        own = next((each for each in session.attempts if each.attempt == checkpoint.attempt), None)
        checkpoint = msgspec.structs.replace(
            checkpoint,
            created_at=catalog.moment_after(checkpoint.created_at),
            metrics=update_at(session, checkpoint.checkpoint_step),
            rewinds=own.rewinds if own is not None and own.last_step is not None else -1,
            is_before_update=not session.metrics_history or session.steps_completed < checkpoint.checkpoint_step,
        )
        checkpoint = with_evaluation(checkpoint, session.evaluations)
        if is_best is None:
            is_best = catalog.has_lowest_loss(checkpoint)
        if is_best and BEST not in checkpoint.recovery_tags:
            checkpoint = msgspec.structs.replace(checkpoint, recovery_tags=[*checkpoint.recovery_tags, BEST])
        if is_bad_at(session, checkpoint.metrics) and BAD_LOSS not in checkpoint.recovery_tags:
            checkpoint = msgspec.structs.replace(checkpoint, recovery_tags=[*checkpoint.recovery_tags, BAD_LOSS])
        event = CheckpointRecorded(
            **self._writer.stamp(),
            checkpoint=checkpoint,
            seconds=seconds,
            save_seconds=msgspec.UNSET if save_seconds is None else save_seconds,
        )
        self._writer.keep_durably(event)
        self._num_failed, self._failed_step = 0, None
        self._writer.write_manifest()
        if checkpoint.num_bytes is not None and checkpoint.digest is None:
            self._digests.start(checkpoint)
        return checkpoint

    def record_failure(self, step: int, error: object) -> int:
        """Journal that a step could not be saved, once for a step; return how many saves of this attempt failed last.

        Secrets in the error are hidden.
        """
        if step != self._failed_step:
            self._num_failed, self._failed_step = self._num_failed + 1, step
            self._writer.keep(CheckpointFailed(**self._writer.stamp(), step=step, error=_reason(error)))
        return self._num_failed

    def offer(self, choice: ResumePoint) -> CheckpointMetadata:
        """Quarantine the refused checkpoints, and return the chosen one with its absolute path."""
        chosen = choice.checkpoint
        if chosen.num_bytes is None:
            log.warning("%s was never verified, but no better checkpoint was recorded.", chosen.checkpoint_path)
        elif chosen.digest is None:
            # A run that was copied has other files than were recorded; those that were just read are the ones.
            stats = stats_of(choice.path, chosen.stats or None)
            self._digests.start(msgspec.structs.replace(chosen, stats=stats))
        for checkpoint, reason in choice.refused:
            self._quarantine(checkpoint, reason)
        for checkpoint, reason in choice.suspect:
            log.warning("Passing over %s: %s.", checkpoint.checkpoint_path, reason)
        log_added_files(chosen, self._writer.run.folder)
        self._writer.keep(
            ResumeChosen(
                **self._writer.stamp(),
                step=chosen.checkpoint_step,
                checkpoint_path=chosen.checkpoint_path,
                skipped=[each.checkpoint_path for each, _ in choice.refused],
                created_at=chosen.created_at,
                verified=self._verified(choice),
            )
        )
        return choice.located

    def _verified(self, choice: ResumePoint) -> dict[str, FileStat] | UnsetType:
        """What to note of the files that were just read: nothing where it is on record already."""
        verified = settled(choice.stats or {}, now=self._clock.now())
        return UNSET if verified == choice.checkpoint.verified else verified

    def keep_digests(self, *, wait: bool) -> list[CheckpointMetadata]:
        """Record the digests that were computed in the background; return the checkpoints that have one now.

        Raises:
            StorageError, OSError: none is recorded; the next call tries again.
        """
        if wait:
            self._digests.wait()
        finished = self._digests.take_finished()
        for number, (checkpoint, digest) in enumerate(finished):
            try:
                self._keep_digest(checkpoint, digest)
            except (StorageError, OSError):
                self._digests.put_back(finished[number:])
                if not number:
                    raise
                finished = finished[:number]
                break
        if finished:
            self._writer.write_manifest()
        return [
            msgspec.structs.replace(each, num_bytes=digest.num_bytes, digest=digest.digest, files=digest.files)
            for each, digest in finished
        ]

    def _keep_digest(self, checkpoint: CheckpointMetadata, digest: Digest) -> None:
        self._writer.keep_durably(
            CheckpointHashed(
                **self._writer.stamp(),
                step=checkpoint.checkpoint_step,
                checkpoint_path=checkpoint.checkpoint_path,
                created_at=checkpoint.created_at,
                num_bytes=digest.num_bytes,
                digest=digest.digest,
                files=digest.files,
                verified=settled(checkpoint.stats or {}, now=self._clock.now()),
            )
        )

    def stale(self, session: TrainingSession, rule: RetentionRule) -> Stale | None:
        """The checkpoints that a rule does not keep and that may be removed, or None.

        Reads a whole checkpoint back, and needs no lock: pass the session as of now.
        """
        return self._superfluous(session, stale_checkpoints(session, rule))

    def unwanted(self, session: TrainingSession, checkpoint_path: Path) -> Stale | None:
        """Like `stale`, for one checkpoint that the caller does not keep."""
        spelled = self._writer.run.folder.recorded_path(checkpoint_path)
        known = CheckpointCatalog(session).at_path(spelled)
        return self._superfluous(session, [] if known is None else [known])

    def forget(self, stale: Stale) -> TrainingSession:
        """Take checkpoints out of the session and the manifest; return the session, which names what to delete.

        Raises:
            DiskFull: they stay.
        """
        session, folder = self._writer.session, self._writer.run.folder
        known = CheckpointCatalog(session).all()
        removed = [
            RemovedCheckpoint(step=each.checkpoint_step, checkpoint_path=each.checkpoint_path)
            for each in stale.checkpoints
            if stale.verified in known and each in known and rescue_added_files(each, folder, disk=self._disk)
        ]
        if removed:
            # The event first, durable, so that nothing offers what is deleted; then the manifest, then the files.
            self._writer.keep_durably(
                CheckpointRemoved(
                    **self._writer.stamp(),
                    checkpoints=[*find_undeleted(session, folder), *removed],
                    verified=stale.verified.checkpoint_path,
                )
            )
            self._writer.write_manifest()
        return self._writer.session_as_of_now()

    def delete_removed(self, session: TrainingSession) -> None:
        """Delete the files of removed checkpoints; takes long, and needs no lock: pass the session as of now.

        Raises:
            StorageUnwritable: some are still there; the next call tries again.
        """
        delete_removed(session, self._writer.run.folder, disk=self._disk)

    def keep_deletion(self) -> None:
        """Record that the files are deleted, so that a later file of the same name is not deleted too."""
        left = find_undeleted(self._writer.session, self._writer.run.folder)
        if left != self._writer.session.checkpoints_removing:
            self._writer.keep(CheckpointsDeleted(**self._writer.stamp(), left=left))

    def quarantine(self, path: Path, step: int, reason: str, *, created_at: float | None = None) -> None:
        """Move a checkpoint out of the way, and journal it."""
        event = quarantine(
            path,
            self._writer.folder,
            self._writer.stamp(),
            step=step,
            reason=reason,
            created_at=created_at,
            disk=self._disk,
        )
        if event is not None:
            self._writer.keep(event)
            self._writer.write_manifest()

    def keep_previous(self, checkpoint: CheckpointMetadata, *, is_replaced: bool) -> None:
        """Keep the bytes of a checkpoint until the next save of the same name is acknowledged.

        Takes as long as a copy; needs no lock, but no deletion may be under way.
        """
        folder = self._writer.run.folder
        if checkpoint.digest is not None and is_overwritten(checkpoint, folder) and not is_kept(checkpoint, folder):
            keep_previous(checkpoint, folder, is_replaced=is_replaced, disk=self._disk)

    def drop_previous(self, session: TrainingSession) -> None:
        """Remove the bytes kept of records that others have replaced; pass the session as of now."""
        drop_previous(CheckpointCatalog(session), self._writer.run.folder, disk=self._disk)

    def close(self) -> None:
        """Stop computing digests."""
        self._digests.close()

    def _superfluous(self, session: TrainingSession, unkept: list[CheckpointMetadata]) -> Stale | None:
        folder = self._writer.run.folder
        unkept = [each for each in unkept if is_removable(each.checkpoint_path, session, folder)]
        if not unkept or (verified := newest_intact(session, folder)) is None:
            return None
        gone = [each for each in unkept if each.checkpoint_step < verified.checkpoint_step]
        return Stale(checkpoints=gone, verified=verified) if gone else None

    def _quarantine(self, checkpoint: CheckpointMetadata, reason: str) -> None:
        folder = self._writer.folder
        path = folder.find(checkpoint.checkpoint_path)
        if not (folder.is_inside(path) and is_damaged(checkpoint, folder)):
            log.warning("Skipping %s: %s.", checkpoint.checkpoint_path, reason)
            return
        self.quarantine(path, checkpoint.checkpoint_step, reason, created_at=checkpoint.created_at)


def _reason(error: object) -> str:
    if isinstance(error, CrashproofError):
        return as_text(without_secrets(error.message))
    text = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)
    return as_text(without_secrets(text))


def _tags(recovery_tags: Iterable[str] | None) -> list[str]:
    if recovery_tags is None:
        return ["periodic"]
    is_single = isinstance(recovery_tags, str) or not isinstance(recovery_tags, Iterable)
    return [as_text(tag) for tag in ([recovery_tags] if is_single else recovery_tags)]

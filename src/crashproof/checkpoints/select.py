"""Choose the checkpoint to resume from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec

from crashproof.checkpoints.loose import find_loose
from crashproof.checkpoints.verify import Verification, examine, examine_previous, problem_with
from crashproof.disk.lost_records import find_traces
from crashproof.disk.run_folder import RunFolder, is_remote
from crashproof.errors import NoUsableCheckpoint, RecordsLost
from crashproof.records.checkpoints import CheckpointMetadata, FileStat, RefusedCheckpoint
from crashproof.records.session import TrainingSession
from crashproof.rules.checkpoint_catalog import CheckpointCatalog

__all__ = ["ResumePoint", "choose", "choose_for", "newest_intact"]

log = logging.getLogger("crashproof")


class ResumePoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run resumes, and the checkpoints that were rejected on the way to it."""

    checkpoint: CheckpointMetadata
    """Its record."""
    path: Path
    """Absolute; that of the bytes kept of it, if its file has been overwritten since. An address stays as it is."""
    refused: list[tuple[CheckpointMetadata, str]]
    """Each with the reason, in the order in which they were tried."""
    verification: Verification
    """How it is known that it is intact."""
    stats: dict[str, FileStat] | None
    """What the file system said of its files while they were read; None where they were not, or have changed."""
    suspect: list[tuple[CheckpointMetadata, str]] = []
    """Newer ones that are intact, but from which resumes died without progress, each with the reason."""

    @property
    def located(self) -> CheckpointMetadata:
        """The record with the path to load from."""
        if is_remote(self.checkpoint.checkpoint_path):
            return self.checkpoint
        return msgspec.structs.replace(self.checkpoint, checkpoint_path=str(self.path))


def choose(
    candidates: Sequence[CheckpointMetadata],
    folder: RunFolder,
    *,
    overwritten: Sequence[CheckpointMetadata] = (),
    quarantined: Sequence[RefusedCheckpoint] = (),
    trusts_record: bool = False,
) -> ResumePoint | None:
    """The first intact one of some checkpoints, or None if none was ever recorded.

    Every byte of a candidate is read, but with `trusts_record`. Checkpoints that cannot be verified (a remote path, a
    save in progress when it was recorded) are offered only if no verifiable one was ever recorded, and no other is
    unchanged.

    Args:
        candidates: In the order in which they are tried; see `CheckpointCatalog.candidates`.
        folder: The run.
        overwritten: Candidates whose path a newer record has taken: offered if their bytes were kept, and passed over
            in silence otherwise.
        quarantined: Those that were found damaged earlier.
        trusts_record: For a look that loads nothing: do not read files again that are unchanged since they were
            verified.

    Raises:
        NoUsableCheckpoint: some were recorded and none can be used; names each and why.
    """
    if not candidates and not quarantined:
        return None
    has_verifiable = bool(quarantined) or any(each.is_verifiable for each in candidates)
    # An older one that is unchanged comes before a newer one that may have been written to.
    choice, refused = _first_usable(candidates, overwritten, folder, False, trusts_record)
    if choice is None and not has_verifiable:
        choice, refused = _first_usable(candidates, overwritten, folder, True, trusts_record)
    if choice is not None:
        return choice
    reasons = [(each.checkpoint_path, reason) for each, reason in refused]
    reasons += [(each.checkpoint_path, f"{each.reason}; quarantined earlier") for each in quarantined]
    raise NoUsableCheckpoint(folder.root, refused=reasons)


def choose_for(session: TrainingSession, folder: RunFolder, *, trusts_record: bool = False) -> ResumePoint | None:
    """The checkpoint that a session would resume from; see `choose`.

    Raises:
        RecordsLost: its events are lost, and no snapshot says which checkpoints there were; or it has recorded
            nothing yet, and checkpoints lie in its folder that are older than it.
    """
    catalog = CheckpointCatalog(session)
    if not catalog.all() and not catalog.quarantined():
        traces = find_traces(folder)
        if not traces and not session.highest_step:
            # Without a beginning it is unknown when the session began.
            traces = find_loose(folder, before=session.start_time or None)
        if traces:
            raise RecordsLost(folder.root, found=traces)
    found = choose(
        catalog.candidates(),
        folder,
        overwritten=catalog.overwritten(),
        quarantined=catalog.quarantined(),
        trusts_record=trusts_record,
    )
    if found is None or catalog.suspicion_of(found.checkpoint):
        return found
    newer = [each for each in catalog.all() if each.created_at > found.checkpoint.created_at]
    suspect = [(each, why) for each in newer if (why := catalog.suspicion_of(each))]
    return msgspec.structs.replace(found, suspect=suspect)


def _first_usable(
    candidates: Sequence[CheckpointMetadata],
    overwritten: Sequence[CheckpointMetadata],
    folder: RunFolder,
    trusts_unverified: bool,
    trusts_record: bool,
) -> tuple[ResumePoint | None, list[tuple[CheckpointMetadata, str]]]:
    refused: list[tuple[CheckpointMetadata, str]] = []
    for candidate in candidates:
        if candidate in overwritten:
            found = examine_previous(candidate, folder, trusts_record=trusts_record)
            if found is None:
                continue
        else:
            found = examine(candidate, folder, trusts_unverified=trusts_unverified, trusts_record=trusts_record)
        if found.problem is None:
            if found.path.parent == folder.previous:
                _report_kept(candidate, found.path)
            choice = ResumePoint(
                checkpoint=candidate,
                path=found.path,
                refused=refused,
                verification=found.verification,
                stats=found.stats,
            )
            return choice, refused
        refused.append((candidate, found.problem))
    return None, refused


def _report_kept(checkpoint: CheckpointMetadata, path: Path) -> None:
    log.warning(
        "%s no longer holds its checkpoint of step %s; the bytes that were kept of it are used: %s.",
        checkpoint.checkpoint_path,
        f"{checkpoint.checkpoint_step:,}",
        path,
    )


def newest_intact(session: TrainingSession, folder: RunFolder) -> CheckpointMetadata | None:
    """The newest verifiable checkpoint, read back and found intact; None if there is none or it is damaged.

    One that cannot be verified (yet) is skipped.
    """
    standing = CheckpointCatalog(session).standing()
    newest = next((each for each in reversed(standing) if each.is_verifiable), None)
    if newest is None:
        return None
    problem = problem_with(newest, folder)
    if problem is not None:
        log.warning("No checkpoint is removed because %s cannot be used: %s.", newest.checkpoint_path, problem)
        return None
    return newest

"""Choose the checkpoint to resume from."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable
from dataclasses import dataclass

from crashproof.checkpoints.verify import problem_with
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import NoUsableCheckpoint
from crashproof.records.checkpoints import CheckpointMetadata, RefusedCheckpoint
from crashproof.records.session import TrainingSession

__all__ = ["Choice", "choose", "choose_for", "newest_intact"]

log = logging.getLogger("crashproof")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The checkpoint to resume from, and the newer ones that were rejected."""

    checkpoint: CheckpointMetadata
    refused: list[tuple[CheckpointMetadata, str]]
    """Each with the reason, the newest first."""


def choose(
    checkpoints: Iterable[CheckpointMetadata],
    folder: RunFolder,
    *,
    quarantined: Iterable[RefusedCheckpoint] = (),
    superseded: Container[int] = (),
) -> Choice | None:
    """The newest intact checkpoint, or None if none was ever recorded.

    Superseded ones, by step, come after all others. Every byte of a candidate is read. Checkpoints that cannot be
    verified (a remote path, a save in progress when it was recorded) are offered only if no verifiable one was ever
    recorded.

    Raises:
        NoUsableCheckpoint: some were recorded and none can be used; names each and why.
    """
    newest_first = sorted(
        checkpoints,
        key=lambda each: (each.checkpoint_step not in superseded, each.checkpoint_step, each.created_at),
        reverse=True,
    )
    gone = list(quarantined)
    if not newest_first and not gone:
        return None
    has_verifiable = bool(gone) or any(each.is_verifiable for each in newest_first)
    refused: list[tuple[CheckpointMetadata, str]] = []
    for candidate in newest_first:
        problem = problem_with(candidate, folder, trusts_unverified=not has_verifiable)
        if problem is None:
            return Choice(checkpoint=candidate, refused=refused)
        refused.append((candidate, problem))
    reasons = [(each.checkpoint_path, reason) for each, reason in refused]
    reasons += [(each.checkpoint_path, f"{each.reason}; quarantined earlier") for each in gone]
    raise NoUsableCheckpoint(folder.root, refused=reasons)


def choose_for(session: TrainingSession, folder: RunFolder) -> Choice | None:
    """The checkpoint that a session would resume from; see `choose`."""
    return choose(
        [*session.checkpoints.values(), *session.checkpoints_beside],
        folder,
        quarantined=session.checkpoints_set_aside,
        superseded=session.checkpoints_superseded,
    )


def newest_intact(session: TrainingSession, folder: RunFolder) -> CheckpointMetadata | None:
    """The newest verifiable checkpoint, read back and found intact; None if there is none or it is damaged.

    One that cannot be verified (yet) is skipped.
    """
    known = [*session.checkpoints.values(), *session.checkpoints_beside]
    verifiable = [
        each for each in known if each.is_verifiable and each.checkpoint_step not in session.checkpoints_superseded
    ]
    newest = max(verifiable, key=lambda each: (each.checkpoint_step, each.created_at), default=None)
    if newest is None:
        return None
    problem = problem_with(newest, folder)
    if problem is not None:
        log.warning("No checkpoint is removed because %s cannot be used: %s.", newest.checkpoint_path, problem)
        return None
    return newest

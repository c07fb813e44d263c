"""Choose the checkpoint to resume from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from crashproof.checkpoints.verify import problem_with
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import NoUsableCheckpoint
from crashproof.records.checkpoints import CheckpointMetadata, RefusedCheckpoint
from crashproof.records.session import TrainingSession
from crashproof.rules.checkpoint_catalog import CheckpointCatalog

__all__ = ["Choice", "choose", "choose_for", "newest_intact"]

log = logging.getLogger("crashproof")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The checkpoint to resume from, and the newer ones that were rejected."""

    checkpoint: CheckpointMetadata
    refused: list[tuple[CheckpointMetadata, str]]
    """Each with the reason, the newest first."""


def choose(
    candidates: Sequence[CheckpointMetadata],
    folder: RunFolder,
    *,
    quarantined: Sequence[RefusedCheckpoint] = (),
) -> Choice | None:
    """The first intact one of some checkpoints, or None if none was ever recorded.

    Every byte of a candidate is read. Checkpoints that cannot be verified (a remote path, a save in progress when it
    was recorded) are offered only if no verifiable one was ever recorded.

    Args:
        candidates: In the order in which they are tried; see `CheckpointCatalog.candidates`.
        folder: The run.
        quarantined: Those that were found damaged earlier.

    Raises:
        NoUsableCheckpoint: some were recorded and none can be used; names each and why.
    """
    if not candidates and not quarantined:
        return None
    has_verifiable = bool(quarantined) or any(each.is_verifiable for each in candidates)
    refused: list[tuple[CheckpointMetadata, str]] = []
    for candidate in candidates:
        problem = problem_with(candidate, folder, trusts_unverified=not has_verifiable)
        if problem is None:
            return Choice(checkpoint=candidate, refused=refused)
        refused.append((candidate, problem))
    reasons = [(each.checkpoint_path, reason) for each, reason in refused]
    reasons += [(each.checkpoint_path, f"{each.reason}; quarantined earlier") for each in quarantined]
    raise NoUsableCheckpoint(folder.root, refused=reasons)


def choose_for(session: TrainingSession, folder: RunFolder) -> Choice | None:
    """The checkpoint that a session would resume from; see `choose`."""
    catalog = CheckpointCatalog(session)
    return choose(catalog.candidates(), folder, quarantined=catalog.quarantined())


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

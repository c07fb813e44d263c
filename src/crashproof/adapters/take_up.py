"""Take up checkpoints of a framework.

A run that was begun without crashproof, or went on without it for a while, has checkpoints that no record knows. What
the framework itself would resume is inspected and adopted; nothing is moved or removed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from crashproof.checkpoints.foreign.inspection import inspect
from crashproof.checkpoints.foreign.placing import Candidate
from crashproof.checkpoints.foreign.survey import Survey, survey
from crashproof.clock import Clock
from crashproof.disk.files import Disk
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import NoUsableCheckpoint
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.session import TrainingSession
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.tracking.adopt import adopt_checkpoints

__all__ = ["Foreign", "find_foreign", "newest_foreign", "take_up"]

log = logging.getLogger("crashproof")

_SUFFIXES = {"lightning": ".ckpt"}
"""The endings of files of frameworks that save into files; the others save into folders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """A framework's checkpoints that no record knows and that training has not gone past."""

    intact: list[Candidate]
    """Sorted by step."""
    torn: list[tuple[str, str]]
    """Each a path and the reason."""
    not_understood: list[tuple[str, str]]
    """Each a path and the reason."""


def find_foreign(framework: str, folder: RunFolder, session: TrainingSession | None) -> Foreign:
    """Find and inspect a framework's checkpoints; reads every byte of those that no record knows."""
    found = _survey(framework, folder)
    # A kill may have come between a save and its record. Once an attempt has resumed from an older checkpoint, the
    # steps up to that save are superseded: whoever took it up would leave them out of the history.
    done = -1 if session is None else max(session.steps_completed, session.highest_step, _newest_step(session))
    # Of a torn one nobody can tell whose it is.
    unknown = [each for each in found.candidates if each.framework in (framework, "") and each.step > done]
    findings = [(each, inspect(each).problem) for each in unknown]
    torn = [(folder.recorded_path(each.path), problem) for each, problem in findings if problem is not None]
    passed_over = found.not_understood if session is None else []
    torn += [(folder.recorded_path(each.path), each.reason) for each in passed_over if each.is_unreadable]
    return Foreign(
        intact=[each for each, problem in findings if problem is None and each.framework == framework],
        torn=torn,
        not_understood=[
            (folder.recorded_path(each.path), each.reason) for each in passed_over if not each.is_unreadable
        ],
    )


def take_up(
    framework: str,
    folder: RunFolder,
    session: TrainingSession | None,
    *,
    samples_per_step: int,
    clock: Clock,
    disk: Disk,
) -> None:
    """Adopt what is intact; log what is not.

    Raises:
        NoUsableCheckpoint: the run has no record yet, and none of the checkpoints in its folder can be used.
        RunInUse: another live process writes the run.
    """
    foreign = find_foreign(framework, folder, session)
    if foreign.torn and not foreign.intact and session is None:
        raise NoUsableCheckpoint(folder.root, refused=foreign.torn)
    for path, reason in foreign.torn + foreign.not_understood:
        log.warning("%s is not taken up: %s.", path, reason)
    if not foreign.intact:
        return
    adoption = adopt_checkpoints(
        folder.root,
        samples_per_step=samples_per_step or None,
        accepts={each.path for each in foreign.intact}.__contains__,
        clock=clock,
        disk=disk,
    )
    for each in adoption.adopted:
        log.info(
            "Adopting %s (step %s), which was saved without crashproof and is intact.",
            each.checkpoint_path,
            f"{each.checkpoint_step:,}",
        )


def newest_foreign(foreign: Foreign, samples_per_step: int) -> CheckpointMetadata | None:
    """What a process that may not write would find recorded, once the main process has adopted it."""
    if not foreign.intact:
        return None
    newest = foreign.intact[-1]
    return CheckpointMetadata(
        checkpoint_step=newest.step,
        checkpoint_path=str(newest.path),
        created_at=0.0,
        metrics=None,
        dataset_position=newest.step * samples_per_step,
        recovery_tags=[],
        attempt=0,
    )


def _survey(framework: str, folder: RunFolder) -> Survey:
    suffix = _SUFFIXES.get(framework)

    def is_possible(path: Path) -> bool:
        return path.is_dir() if suffix is None else path.suffix == suffix and path.is_file()

    try:
        return survey(folder.root, accepts=is_possible)
    except FileNotFoundError:
        return Survey(candidates=[], not_understood=[])


def _newest_step(session: TrainingSession) -> int:
    return max((each.checkpoint_step for each in CheckpointCatalog(session).all()), default=-1)

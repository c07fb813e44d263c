"""Build a run around checkpoints that other code wrote."""

from __future__ import annotations

import secrets
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from holdfast.checkpoint_records import CheckpointRecorder
from holdfast.clock import SYSTEM_CLOCK, Clock
from holdfast.disk.files import REAL_DISK, Disk
from holdfast.disk.lock import holder_of
from holdfast.disk.run_folder import RunFolder
from holdfast.errors import NothingToAdopt, RunInUse, StorageUnwritable
from holdfast.foreign_checkpoints import LOOKED_FOR, Candidate, Finding, candidates_in, inspect
from holdfast.opening import Identity, open_run
from holdfast.reader import read_run
from holdfast.records import AttemptEnded, CheckpointMetadata, TrainingSession, nonfinite_names
from holdfast.rules.retention import ADOPTED
from holdfast.writer import RunWriter, TrackerSettings

__all__ = ["Adoption", "TornCheckpoint", "adopt_checkpoints"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TornCheckpoint:
    """One that is not whole, left where and as it is."""

    step: int
    path: str
    """Relative to the folder."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """What became of the checkpoints in a folder."""

    adopted: list[CheckpointMetadata]
    torn: list[TornCheckpoint]
    unchecked: dict[str, tuple[str, ...]]
    """By the path of one that was adopted: its files whose format has no checksum."""
    num_known: int
    """Recorded before."""


def adopt_checkpoints(
    output_dir: Path,
    *,
    samples_per_step: int | None = None,
    clock: Clock = SYSTEM_CLOCK,
    disk: Disk = REAL_DISK,
) -> Adoption:
    """Record every whole checkpoint in a folder that is not recorded yet; nothing of it is moved or changed.

    The run has no config until its first start, which takes it up whatever its config is.

    Raises:
        NothingToAdopt: there is no such folder, nothing in it is named like a checkpoint, or none is whole.
        RunInUse: a live process writes the run.
        StorageUnwritable, DiskFull: the run could not be written; what was recorded stays.
    """
    folder = RunFolder.under(output_dir)
    candidates = _candidates(folder)
    if (holder := holder_of(folder.lock)) is not None:
        raise RunInUse(folder.root, host=holder.host, pid=holder.pid)
    session = read_run(folder).session
    known = _known_paths(session)
    new = [each for each in candidates if folder.spell(each.path) not in known]
    findings = [(each, inspect(each)) for each in new]
    torn = [
        TornCheckpoint(step=each.step, path=each.path.name, reason=finding.problem)
        for each, finding in findings
        if finding.problem is not None
    ]
    whole = [(each, finding) for each, finding in findings if finding.problem is None]
    if torn and len(torn) == len(candidates):
        listing = "; ".join(f"{each.path}: {each.reason}" for each in torn)
        raise NothingToAdopt(folder.root, reason=f"none is whole. {listing}", hint="Restore one from a copy.")
    return Adoption(
        adopted=_recorded(folder, session, whole, samples_per_step or 0, clock, disk) if whole else [],
        torn=torn,
        unchecked={each.path.name: finding.unchecked for each, finding in whole if finding.unchecked},
        num_known=len(candidates) - len(new),
    )


def _candidates(folder: RunFolder) -> list[Candidate]:
    try:
        candidates = candidates_in(folder.root)
    except (FileNotFoundError, NotADirectoryError):
        raise NothingToAdopt(folder.root, reason="there is no such folder") from None
    except PermissionError as error:
        raise StorageUnwritable(folder.root, reason=error.strerror or "no permission") from error
    if not candidates:
        raise NothingToAdopt(folder.root, reason=f"nothing in it is named like one ({LOOKED_FOR})")
    return candidates


def _known_paths(session: TrainingSession | None) -> set[str]:
    if session is None:
        return set()
    recorded = {each.checkpoint_path for each in [*session.checkpoints.values(), *session.checkpoints_beside]}
    # What is being deleted is not to be taken up again.
    return recorded | {each.checkpoint_path for each in session.checkpoints_removing}


def _recorded(
    folder: RunFolder,
    session: TrainingSession | None,
    whole: list[tuple[Candidate, Finding]],
    samples_per_step: int,
    clock: Clock,
    disk: Disk,
) -> list[CheckpointMetadata]:
    """An attempt of its own, which trains nothing: it takes the run up as any other, and records."""
    highest = max(each.step for each, _ in whole)
    run = open_run(folder, _identity(session, highest), clock=clock, disk=disk)
    try:
        writer = RunWriter(run, settings=TrackerSettings(), clock=clock, disk=disk)
        # However large, each is digested before it is recorded: nobody is kept waiting.
        recorder = CheckpointRecorder(writer, large_checkpoint_bytes=sys.maxsize, clock=clock, disk=disk)
        adopted = []
        for candidate, finding in whole:
            described = recorder.described(
                candidate.step, candidate.path, candidate.step * samples_per_step, [ADOPTED], None
            )
            if finding.evaluation:
                names = nonfinite_names({"evaluation": finding.evaluation})
                described = msgspec.structs.replace(
                    described, evaluation=finding.evaluation, nonfinite=names or msgspec.UNSET
                )
            adopted.append(recorder.record(described, seconds=0.0))
        hours = writer.session.wall_clock_hours
        writer.keep_durably(AttemptEnded(**writer.stamp(), how=ADOPTED, error=None, wall_clock_hours=hours))
        writer.write_summary(writer.summary(writer.session, wall_clock_hours=hours, num_pending=0))
        writer.write_session(writer.session_content())
    finally:
        run.close()
    return adopted


def _identity(session: TrainingSession | None, highest_step: int) -> Identity:
    """The session's own, where there is one; else one that waits for its config."""
    return Identity(
        session_id=f"training_{secrets.token_hex(6)}",
        config={} if session is None else session.config,
        config_hash="" if session is None else session.config_hash,
        total_steps=max(1, highest_step) if session is None else session.total_steps_target,
        on_config_change="continue",
        is_fresh=False,
    )

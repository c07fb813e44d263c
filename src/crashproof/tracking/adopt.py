"""Adopt checkpoints that other code wrote."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from crashproof.checkpoints.foreign import KNOWN_NAMES, Candidate, Finding, find_candidates, inspect
from crashproof.checkpoints.select import newest_intact
from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.disk.lock import holder_of
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import NothingToAdopt, RunInUse
from crashproof.reading.run_state import read_run
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.codec import nonfinite_names
from crashproof.records.events import AttemptEnded
from crashproof.records.session import TrainingSession
from crashproof.records.states import AttemptState, OnConfigChange, SessionKind
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.rules.retention import ADOPTED
from crashproof.tracking.checkpoint_recorder import CheckpointRecorder, Stale
from crashproof.tracking.open_run import open_run
from crashproof.tracking.requested_session import RequestedSession, new_session_id
from crashproof.tracking.run_writer import RunWriter
from crashproof.tracking.settings import TrackerSettings

__all__ = ["Adoption", "TornCheckpoint", "adopt_checkpoints"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TornCheckpoint:
    """A damaged or incomplete checkpoint, left as it is."""

    step: int
    path: str
    """Relative to the folder."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """The result for the checkpoints in a folder."""

    adopted: list[CheckpointMetadata]
    torn: list[TornCheckpoint]
    unchecked: dict[str, tuple[str, ...]]
    """By the path of an adopted checkpoint: its files whose format has no checksum."""
    num_known: int
    """Already recorded before."""
    forgotten: list[str]
    """Paths of checkpoints that were adopted earlier, no longer exist, and are not recorded any more."""


def adopt_checkpoints(
    output_dir: Path,
    *,
    samples_per_step: int | None = None,
    forgets_gone: bool = False,
    clock: Clock = SYSTEM_CLOCK,
    disk: Disk = REAL_DISK,
) -> Adoption:
    """Record every intact checkpoint in a folder that is not recorded yet; none is moved or changed.

    The run has no config until its first start, which continues it whatever its config is. With `forgets_gone`,
    checkpoints that were adopted earlier and no longer exist are not recorded any more, if a newer one is intact.

    Raises:
        NothingToAdopt: there is no such folder, it cannot be read, nothing in it is named like a checkpoint, or none
            is intact.
        RunInUse: a live process writes the run.
        StorageUnwritable, DiskFull: the run could not be written; what was recorded stays.
    """
    folder = RunFolder.under(output_dir)
    candidates = _candidates(folder)
    if (holder := holder_of(folder.lock)) is not None:
        raise RunInUse(folder.root, host=holder.host, pid=holder.pid)
    session = read_run(folder, accepts_loss=True).session
    may_forget = forgets_gone and session is not None and bool(_gone(session, folder))
    if not candidates and not may_forget:
        raise NothingToAdopt(folder.root, reason=f"nothing in it is named like one ({KNOWN_NAMES})")
    known = _known_paths(session)
    new = [each for each in candidates if folder.recorded_path(each.path) not in known]
    findings = [(each, inspect(each)) for each in new]
    torn = [
        TornCheckpoint(step=each.step, path=each.path.name, reason=finding.problem)
        for each, finding in findings
        if finding.problem is not None
    ]
    intact = [(each, finding) for each, finding in findings if finding.problem is None]
    if torn and len(torn) == len(candidates) and not may_forget:
        listing = "; ".join(f"{each.path}: {each.reason}" for each in torn)
        raise NothingToAdopt(folder.root, reason=f"none is intact. {listing}", hint="Restore one from a backup.")
    adopted: list[CheckpointMetadata] = []
    forgotten: list[CheckpointMetadata] = []
    if intact or may_forget:
        with _attempt(folder, session, [each.step for each, _ in intact], clock, disk) as (writer, recorder):
            adopted = [_record(recorder, *each, samples_per_step or 0) for each in intact]
            forgotten = _forget_gone(recorder, writer.session, folder) if may_forget else []
    return Adoption(
        adopted=adopted,
        torn=torn,
        unchecked={each.path.name: finding.unchecked for each, finding in intact if finding.unchecked},
        num_known=len(candidates) - len(new),
        forgotten=[each.checkpoint_path for each in forgotten],
    )


def _candidates(folder: RunFolder) -> list[Candidate]:
    try:
        return find_candidates(folder.root)
    except (FileNotFoundError, NotADirectoryError):
        raise NothingToAdopt(folder.root, reason="there is no such folder") from None
    except PermissionError as error:
        reason = f"the folder cannot be read ({error.strerror})"
        raise NothingToAdopt(folder.root, reason=reason, hint="Change its permissions.") from error


def _known_paths(session: TrainingSession | None) -> set[str]:
    if session is None:
        return set()
    recorded = {each.checkpoint_path for each in CheckpointCatalog(session).all()}
    # A checkpoint that is being deleted must not be adopted again.
    return recorded | {each.checkpoint_path for each in session.checkpoints_removing}


@contextmanager
def _attempt(
    folder: RunFolder, session: TrainingSession | None, new_steps: list[int], clock: Clock, disk: Disk
) -> Iterator[tuple[RunWriter, CheckpointRecorder]]:
    """Open the run for an attempt of its own, which trains nothing."""
    run = open_run(folder, _requested_session(session, max(new_steps, default=0)), clock=clock, disk=disk)
    try:
        writer = RunWriter(run, settings=TrackerSettings(), clock=clock, disk=disk)
        # However large, each is digested before it is recorded: no training waits for it.
        yield writer, CheckpointRecorder(writer, large_checkpoint_bytes=sys.maxsize, clock=clock, disk=disk)
        hours = writer.session.wall_clock_hours
        writer.keep_durably(
            AttemptEnded(**writer.stamp(), how=AttemptState.ADOPTED, error=None, wall_clock_hours=hours)
        )
        writer.write_summary(writer.summary(writer.session, wall_clock_hours=hours, num_pending=0))
        writer.write_session(writer.session_content())
    finally:
        run.close()


def _record(
    recorder: CheckpointRecorder, candidate: Candidate, finding: Finding, samples_per_step: int
) -> CheckpointMetadata:
    checkpoint = recorder.describe(
        candidate.step, candidate.path, candidate.step * samples_per_step, [ADOPTED], written=None
    )
    if finding.evaluation:
        names = nonfinite_names({"evaluation": finding.evaluation})
        checkpoint = msgspec.structs.replace(
            checkpoint, evaluation=finding.evaluation, nonfinite=names or msgspec.UNSET
        )
    return recorder.record(checkpoint, seconds=0.0)


def _gone(session: TrainingSession, folder: RunFolder) -> list[CheckpointMetadata]:
    """Checkpoints that were adopted earlier and no longer exist."""
    return [
        each
        for each in CheckpointCatalog(session).all()
        if ADOPTED in each.recovery_tags and not folder.find(each.checkpoint_path).exists()
    ]


def _forget_gone(
    recorder: CheckpointRecorder, session: TrainingSession, folder: RunFolder
) -> list[CheckpointMetadata]:
    """Take checkpoints that no longer exist out of the manifest, if a newer one is read back and intact."""
    verified = newest_intact(session, folder)
    if verified is None:
        return []
    gone = [each for each in _gone(session, folder) if each.checkpoint_step < verified.checkpoint_step]
    recorder.forget(Stale(checkpoints=gone, verified=verified))
    recorder.keep_deletion()
    return gone


def _requested_session(session: TrainingSession | None, highest_step: int) -> RequestedSession:
    """The session that exists, or a new one that waits for its config."""
    return RequestedSession(
        session_id=new_session_id(),
        config={} if session is None else session.config,
        config_hash="" if session is None else session.config_hash,
        total_steps=max(1, highest_step) if session is None else session.total_steps_target,
        kind=SessionKind.TRAINING,
        on_config_change=OnConfigChange.CONTINUE,
        is_fresh=False,
        accepts_loss=True,
    )

"""Adopt checkpoints that other code wrote."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from crashproof.checkpoints.foreign.inspection import Finding, inspect
from crashproof.checkpoints.foreign.placing import BY_NAME, Candidate
from crashproof.checkpoints.foreign.survey import KNOWN_NAMES, Survey, survey
from crashproof.checkpoints.select import newest_intact
from crashproof.checkpoints.verify import examine
from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.disk.lock import holder_of
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import NothingToAdopt, RunInUse
from crashproof.reading.run_state import read_run
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.events import AttemptEnded
from crashproof.records.lines.codec import nonfinite_names
from crashproof.records.session import TrainingSession
from crashproof.records.states import AttemptState, OnConfigChange, SessionKind
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.rules.identity import IdentityRules
from crashproof.rules.retention import ADOPTED
from crashproof.tracking.checkpoint_recorder import CheckpointRecorder, Stale
from crashproof.tracking.open_run import open_run
from crashproof.tracking.requested_session import RequestedSession, new_session_id
from crashproof.tracking.run_writer import RunWriter
from crashproof.tracking.settings import TrackerSettings

__all__ = ["Adoption", "TornCheckpoint", "adopt_checkpoints"]

_MAX_NAMED = 10


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
    not_understood: dict[str, str]
    """By path: why something that looks like a checkpoint was passed over."""
    step_sources: dict[str, str]
    """By the path of an adopted checkpoint: where its step stands, if not in its name."""
    forgotten: list[str]
    """Paths of checkpoints that were adopted earlier, no longer exist, and are not recorded any more."""


def adopt_checkpoints(
    output_dir: Path,
    *,
    samples_per_step: int | None = None,
    forgets_gone: bool = False,
    accepts: Callable[[Path], bool] | None = None,
    steps: Mapping[str, int] | None = None,
    clock: Clock = SYSTEM_CLOCK,
    disk: Disk = REAL_DISK,
) -> Adoption:
    """Record every intact checkpoint in a folder that is not recorded yet; none is moved or changed.

    The run has no config until its first start, which continues it whatever its config is.

    Args:
        output_dir: The run's folder; the folders in it are gone through as well.
        samples_per_step: For the positions in the data.
        forgets_gone: Whether checkpoints that were adopted earlier and no longer exist are not recorded any more, if
            a newer one is intact.
        accepts: Whether an absolute path may be a checkpoint at all; anything may if not given.
        steps: The steps of checkpoints that do not name theirs, by path.
        clock: The source of time.
        disk: The disk to write to.

    Raises:
        NothingToAdopt: there is no such folder, it cannot be read, nothing in it is understood as a checkpoint, none
            is intact, or one of `steps` does not exist.
        RunInUse: a live process writes the run.
        StorageUnwritable, DiskFull: the run could not be written; what was recorded stays.
    """
    folder = RunFolder.under(output_dir)
    found = _survey(folder, accepts, steps or {})
    if (holder := holder_of(folder.lock)) is not None:
        raise RunInUse(folder.root, host=holder.host, pid=holder.pid)
    session = read_run(folder, accepts_loss=True).session
    may_forget = forgets_gone and session is not None and bool(_gone(session, folder))
    if not found.candidates and not may_forget:
        raise NothingToAdopt(folder.root, reason=_why_nothing(found, folder))
    new = [each for each in found.candidates if not _is_known(each, session, folder)]
    findings = [(each, inspect(each)) for each in new]
    torn = [
        TornCheckpoint(step=each.step, path=folder.recorded_path(each.path), reason=finding.problem)
        for each, finding in findings
        if finding.problem is not None
    ]
    intact = [(each, finding) for each, finding in findings if finding.problem is None]
    if torn and len(torn) == len(found.candidates) and not may_forget:
        torn_ones = "; ".join(f"{each.path}: {each.reason}" for each in torn)
        raise NothingToAdopt(folder.root, reason=f"none is intact. {torn_ones}", hint="Restore one from a backup.")
    adopted: list[CheckpointMetadata] = []
    forgotten: list[CheckpointMetadata] = []
    if intact or may_forget:
        with _attempt(folder, session, [each.step for each, _ in intact], clock, disk) as (writer, recorder):
            adopted = [_record(recorder, *each, samples_per_step or 0) for each in intact]
            forgotten = _forget_gone(recorder, writer.session, folder) if may_forget else []
    return Adoption(
        adopted=adopted,
        torn=torn,
        unchecked={
            folder.recorded_path(each.path): finding.unchecked for each, finding in intact if finding.unchecked
        },
        num_known=len(found.candidates) - len(new),
        not_understood=_reasons(found, folder),
        step_sources={folder.recorded_path(each.path): each.source for each, _ in intact if each.source != BY_NAME},
        forgotten=[each.checkpoint_path for each in forgotten],
    )


def _survey(folder: RunFolder, accepts: Callable[[Path], bool] | None, steps: Mapping[str, int]) -> Survey:
    given = {folder.root / path: step for path, step in steps.items()}
    try:
        found = survey(folder.root, accepts=accepts, steps=given)
    except (FileNotFoundError, NotADirectoryError):
        raise NothingToAdopt(folder.root, reason="there is no such folder") from None
    except PermissionError as error:
        reason = f"the folder cannot be read ({error.strerror})"
        raise NothingToAdopt(folder.root, reason=reason, hint="Change its permissions.") from error
    missing = [path for path in given if not path.exists()]
    if missing:
        raise NothingToAdopt(folder.root, reason=f"a step was given for {missing[0]}, which does not exist")
    return found


def _why_nothing(found: Survey, folder: RunFolder) -> str:
    reasons = _reasons(found, folder)
    if not reasons:
        return f"nothing in it is named like one ({KNOWN_NAMES})"
    each_one = [f"{path}: {reason}" for path, reason in reasons.items()]
    more = f"; and {len(each_one) - _MAX_NAMED:,} more" if len(each_one) > _MAX_NAMED else ""
    return f"nothing in it is understood as one. {'; '.join(each_one[:_MAX_NAMED])}{more}"


def _reasons(found: Survey, folder: RunFolder) -> dict[str, str]:
    return {folder.recorded_path(each.path): each.reason for each in found.not_understood}


def _is_known(candidate: Candidate, session: TrainingSession | None, folder: RunFolder) -> bool:
    """Whether a checkpoint is recorded already, and not overwritten since by one of another step."""
    if session is None:
        return False
    path = folder.recorded_path(candidate.path)
    # A checkpoint that is being deleted must not be adopted again.
    if path in {each.checkpoint_path for each in session.checkpoints_removing}:
        return True
    recorded = CheckpointCatalog(session).at_path(path)
    if recorded is None:
        return False
    if recorded.checkpoint_step == candidate.step:
        return True
    place = examine(recorded, folder)
    return place.problem is None and place.path == folder.find(path)


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
        writer.write_summary(
            writer.summary(writer.session, wall_clock_hours=hours, num_pending=0), writer.progress_file()
        )
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
    recorded = recorder.record(checkpoint, seconds=0.0)
    recorder.keep_previous(recorded, is_replaced=False)
    return recorded


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
        rules=IdentityRules(),
        is_fresh=False,
        accepts_loss=True,
    )

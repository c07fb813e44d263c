"""Find where a framework's run resumes.

A framework saves into the final folder, so a process killed in mid-save leaves one that looks like a checkpoint. Only
complete ones are recorded, which tells the two apart.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from crashproof.checkpoints.added_files import log_added_files
from crashproof.checkpoints.foreign.inspection import inspect
from crashproof.checkpoints.foreign.placing import Candidate
from crashproof.checkpoints.foreign.survey import survey
from crashproof.checkpoints.select import choose
from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import ConfigChanged, NothingToAdopt, NoUsableCheckpoint, OtherRun
from crashproof.reading.run_state import read_run
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.session import TrainingSession
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.rules.identity import IdentityRules, canonical_config, compare_configs
from crashproof.tracking.adopt import adopt_checkpoints
from crashproof.tracking.repair import quarantine_unrecorded
from crashproof.tracking.settings import TrackerSettings
from crashproof.tracking.tracker import ProgressTracker

__all__ = ["FrameworkRun", "newest_checkpoint", "offered_checkpoint", "recorded_checkpoints", "require_own_run"]

log = logging.getLogger("crashproof")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameworkRun:
    """What an adapter knows of its run before the first step."""

    framework: str
    """The value of `framework` in the session's config, and the name that people use."""
    output_dir: Path
    config: Mapping[str, object]
    on_config_change: str
    """See `ProgressTracker`."""
    rules: IdentityRules = field(default_factory=IdentityRules)
    """What is known of the config's keys."""
    samples_per_step: int
    is_checkpoint: Callable[[Path], bool]
    """Whether a path has the name of a checkpoint of the framework."""

    @property
    def folder(self) -> RunFolder:
        """The paths of the run."""
        return RunFolder.under(self.output_dir)


def require_own_run(framework: str, folder: RunFolder, session: TrainingSession | None) -> None:
    """Refuse the run of another program.

    Raises:
        OtherRun: the folder holds a session that this framework did not write.
    """
    if session is None or not session.config_hash:
        return
    found = session.config.get("framework")
    if found != framework:
        raise OtherRun(folder.root, found=f"one of {found or 'another program'}", wanted=f"one of {framework}")


def offered_checkpoint(
    folder: RunFolder, config: Mapping[str, object], total_steps: int, *, clock: Clock, disk: Disk
) -> CheckpointMetadata | None:
    """The checkpoint that a tracker offers; in an attempt that trains nothing, it quarantines and records damage.

    Raises:
        NoUsableCheckpoint: some were recorded and none can be used.
        RunInUse: another live process writes the run.
    """
    tracker = ProgressTracker(
        folder.progress,
        config,
        total_steps,
        on_config_change="continue",
        settings=TrackerSettings(has_heartbeat=False),
        clock=clock,
        disk=disk,
    )
    try:
        return tracker.get_recovery_checkpoint()
    finally:
        tracker.close("replaced")


def recorded_checkpoints(run: FrameworkRun, session: TrainingSession) -> list[CheckpointMetadata]:
    """The framework's own among the checkpoints of a session."""
    return [each for each in CheckpointCatalog(session).candidates() if run.is_checkpoint(Path(each.checkpoint_path))]


def newest_checkpoint(
    run: FrameworkRun, *, clock: Clock = SYSTEM_CLOCK, disk: Disk = REAL_DISK
) -> CheckpointMetadata | None:
    """The newest intact checkpoint with its absolute path, or None for a fresh start.

    Moves to `set_aside/` what was never recorded, or was altered since. Inspects what was saved without crashproof
    (before it was added, or since), and adopts it if it is intact.

    Raises:
        NoUsableCheckpoint: there were some, and none can be used.
        ConfigChanged: the config differs and `on_config_change` is `error`.
        OtherRun: the folder holds the run of another program.
        RunInUse: another live process writes the run.
    """
    folder = run.folder
    session = read_run(folder).session
    require_own_run(run.framework, folder, session)
    unrecorded = _find_unrecorded(run, session)
    if session is None and not unrecorded:
        return None
    starts_over = session is not None and _starts_over(run, session)
    foreign, refused = _inspect_all(unrecorded, session, is_leftover=starts_over)
    if refused and not foreign and _knows_nothing(run, session):
        # They stay where they are: otherwise the next start would find nothing and start over silently.
        raise NoUsableCheckpoint(folder.root, refused=[(each.path.name, reason) for each, reason in refused])
    if foreign:
        _adopt(run, foreign, clock, disk)
    if refused:
        listing = [(each.path, each.step, reason) for each, reason in refused]
        quarantine_unrecorded(listing, folder, clock=clock, disk=disk)
    if starts_over:
        return None
    session = read_run(folder).session
    return None if session is None else _choose(run, session, clock, disk)


def _knows_nothing(run: FrameworkRun, session: TrainingSession | None) -> bool:
    """Whether the session has trained and saved nothing, so that a torn folder cannot be its own first save."""
    return session is None or not (session.metrics_history or recorded_checkpoints(run, session))


def _find_unrecorded(run: FrameworkRun, session: TrainingSession | None) -> list[Candidate]:
    try:
        candidates = survey(run.folder.root, accepts=run.is_checkpoint, most_depth=0).candidates
    except FileNotFoundError:
        return []
    known = set()
    if session is not None:
        known = {each.checkpoint_path for each in recorded_checkpoints(run, session)}
        # What is being deleted is left to the next start.
        known |= {each.checkpoint_path for each in session.checkpoints_removing}
    return [each for each in candidates if run.folder.recorded_path(each.path) not in known]


def _starts_over(run: FrameworkRun, session: TrainingSession) -> bool:
    """Whether the next start archives the session with its checkpoints."""
    if not session.config_hash:
        return False
    found = compare_configs(session.config, canonical_config(run.config), run.rules)
    if not found.is_another_run:
        return False
    if run.on_config_change == "error":
        raise ConfigChanged(run.folder.root, changed=found.changed, how_to_keep=found.how_to_keep)
    return run.on_config_change == "archive"


def _inspect_all(
    unrecorded: list[Candidate], session: TrainingSession | None, *, is_leftover: bool
) -> tuple[list[Candidate], list[tuple[Candidate, str]]]:
    """The intact checkpoints of other training, and the unusable ones, each with the reason."""
    foreign: list[Candidate] = []
    refused: list[tuple[Candidate, str]] = []
    for candidate in unrecorded:
        problem: str | None
        if session is not None and (is_leftover or candidate.step <= session.steps_completed):
            # The process died between its first byte and its record.
            problem = "it was never recorded as complete"
        else:
            problem = inspect(candidate).problem
        if problem is None:
            foreign.append(candidate)
        else:
            refused.append((candidate, problem))
    return foreign, refused


def _adopt(run: FrameworkRun, foreign: list[Candidate], clock: Clock, disk: Disk) -> None:
    try:
        adoption = adopt_checkpoints(
            run.output_dir,
            samples_per_step=run.samples_per_step,
            accepts={each.path for each in foreign}.__contains__,
            clock=clock,
            disk=disk,
        )
    except NothingToAdopt as error:
        raise NoUsableCheckpoint(
            run.folder.root, refused=[(each.path.name, error.message) for each in foreign]
        ) from error
    for each in adoption.adopted:
        log.info("Adopting %s, which was saved without crashproof and is intact.", each.checkpoint_path)


def _choose(run: FrameworkRun, session: TrainingSession, clock: Clock, disk: Disk) -> CheckpointMetadata | None:
    catalog = CheckpointCatalog(session)
    choice = choose(
        recorded_checkpoints(run, session),
        run.folder,
        overwritten=catalog.overwritten(),
        quarantined=catalog.quarantined(),
    )
    if choice is None:
        return None
    if choice.refused:
        config = session.config if session.config_hash else run.config
        return offered_checkpoint(run.folder, config, session.total_steps_target, clock=clock, disk=disk)
    log_added_files(choice.checkpoint, run.folder)
    log.info("Resuming at step %s (%s).", f"{choice.checkpoint.checkpoint_step:,}", choice.path.name)
    return choice.located

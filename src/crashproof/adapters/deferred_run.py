"""A run whose config is known late."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from crashproof.adapters.resume import offered_checkpoint, require_own_run
from crashproof.adapters.take_up import find_foreign, newest_foreign, take_up
from crashproof.checkpoints.added_files import log_added_files
from crashproof.checkpoints.select import choose_for
from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import ConfigChanged, ConfigError
from crashproof.reading.run_state import read_run
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.session import TrainingSession
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.rules.identity import IdentityRules, canonical_config, compare_configs
from crashproof.tracking.settings import TrackerSettings
from crashproof.tracking.tracker import ProgressTracker

__all__ = ["DeferredRun"]

log = logging.getLogger("crashproof")

_ANSWERS = ("continue", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeferredRun:
    """A run, before and while a framework trains it.

    The framework provides its config only after it has loaded a checkpoint. So a changed config cannot start a new
    session here: it is an error, or the run continues.
    """

    framework: str
    """The value of `framework` in the session's config."""
    output_dir: Path
    on_config_change: str
    """`error` or `continue`."""
    ignore_config_keys: Sequence[str] = ()
    """See `ProgressTracker`."""
    settings: TrackerSettings | None
    samples_per_step: int = 0
    """Of all processes, for the positions of checkpoints that are taken up; 0 if not known."""
    clock: Clock = SYSTEM_CLOCK
    disk: Disk = REAL_DISK

    def __post_init__(self) -> None:
        if self.on_config_change not in _ANSWERS:
            raise ConfigError(
                f"on_config_change must be one of {', '.join(_ANSWERS)} here, got {self.on_config_change!r}.",
                hint="To start over, use another output folder.",
            )
        IdentityRules.of(self.ignore_config_keys)

    @property
    def folder(self) -> RunFolder:
        """The paths of the run."""
        return RunFolder.under(self.output_dir)

    def newest_checkpoint(self, *, is_main: bool) -> CheckpointMetadata | None:
        """The newest intact checkpoint with its absolute path, or None for a fresh start; quarantines damaged ones.

        Takes up what the framework saved without crashproof. Reads every byte of a candidate. Call it on every
        process, before the run is opened.

        Raises:
            NoUsableCheckpoint: there were some, and none can be used.
            OtherRun: the folder holds the run of another program.
            RunInUse: another live process writes the run, and a checkpoint must be recorded or quarantined.
        """
        if is_main:
            self.take_up()
        session = read_run(self.folder).session
        require_own_run(self.framework, self.folder, session)
        foreign = None
        if not is_main:
            # The main process may not have recorded it yet.
            foreign = newest_foreign(find_foreign(self.framework, self.folder, session), self.samples_per_step)
        choice = None if session is None or foreign is not None else choose_for(session, self.folder)
        if session is None or choice is None:
            return foreign
        if choice.refused and is_main:
            return offered_checkpoint(
                self.folder, session.config, session.total_steps_target, clock=self.clock, disk=self.disk
            )
        log_added_files(choice.checkpoint, self.folder)
        return choice.located

    def take_up(self) -> None:
        """Adopt what the framework saved without crashproof and would resume itself.

        Raises:
            NoUsableCheckpoint: the run has no record yet, and none of the checkpoints in its folder can be used.
            OtherRun: the folder holds the run of another program.
            RunInUse: another live process writes the run.
        """
        session = read_run(self.folder).session
        require_own_run(self.framework, self.folder, session)
        take_up(
            self.framework,
            self.folder,
            session,
            samples_per_step=self.samples_per_step,
            clock=self.clock,
            disk=self.disk,
        )

    def open(self, config: Mapping[str, object], total_steps: int) -> ProgressTracker:
        """Open the run for writing, before the first step of this process.

        Raises:
            ConfigChanged: the config differs and `on_config_change` is `error`.
            OtherRun: the folder holds the run of another program.
            RunInUse: another live process writes the run.
        """
        return self._open({"framework": self.framework, **config}, total_steps)

    def open_without_config(self, total_steps: int) -> ProgressTracker:
        """Open the run for writing with the config that it has, if any.

        Raises:
            OtherRun: the folder holds the run of another program.
            RunInUse: another live process writes the run.
        """
        session = read_run(self.folder).session
        known = {} if session is None else session.config
        return self._open({"framework": self.framework, **known}, total_steps)

    def _open(self, identity: Mapping[str, object], total_steps: int) -> ProgressTracker:
        session = read_run(self.folder).session
        if session is not None:
            require_own_run(self.framework, self.folder, session)
            self._require_same_config(session, identity)
        return ProgressTracker(
            self.folder.progress,
            identity,
            total_steps,
            on_config_change=self.on_config_change,
            ignore_config_keys=self.ignore_config_keys,
            settings=self.settings,
            clock=self.clock,
            disk=self.disk,
        )

    def require_resumed(self, session: TrainingSession | None, first_step: int) -> None:
        """Refuse to start over silently when there are checkpoints to resume from.

        Raises:
            ConfigError: training would begin at step 0 although the run has checkpoints.
        """
        if session is None or first_step:
            return
        catalog = CheckpointCatalog(session)
        num_known = len(catalog) + len(catalog.quarantined())
        if num_known and not _are_all_of_the_beginning(catalog):
            raise ConfigError(
                f"The run in {self.folder.root} has {num_known} checkpoint(s), and training would begin at step 0.",
                hint="Load the newest one first, as the adapter's docstring shows, or use another output folder.",
            )

    def _require_same_config(self, session: TrainingSession, identity: Mapping[str, object]) -> None:
        if not session.config_hash or self.on_config_change != "error":
            return
        rules = IdentityRules.of(self.ignore_config_keys)
        found = compare_configs(session.config, canonical_config(identity), rules)
        if found.is_another_run:
            raise ConfigChanged(
                self.folder.root,
                changed=found.changed,
                how_to_keep=found.how_to_keep,
                how_to_start_over="use another output folder",
            )


def _are_all_of_the_beginning(catalog: CheckpointCatalog) -> bool:
    """Whether no checkpoint is beyond step 0, so that training from there loses nothing."""
    steps = {each.checkpoint_step for each in catalog.all()}
    return not any(steps | {each.checkpoint_step for each in catalog.quarantined()})

"""Accelerate, kept whole.

```python
tracker = CrashproofTracker("runs/mine", total_steps=1000)
accelerator = Accelerator(log_with=tracker)
accelerator.init_trackers("mine", config={"lr": 0.01})
```

Then `tracker.newest_state()` says where to go on: `accelerator.load_state(found.checkpoint_path)`. In the loop,
`accelerator.log({"loss": loss, "learning_rate": rate}, step=step)` keeps a step, and
`tracker.save_state(accelerator, step, position)` saves. `accelerator.end_training()` ends the attempt.
"""

# ruff: noqa: E402 - a missing extra is reported before anything of it is imported.

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from crashproof.adapters.deferred_run import KeptRun
from crashproof.checkpoints.quarantine import move_aside
from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.disk.atomic import partial_name, write_folder_atomically
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.errors import ConfigError
from crashproof.optional_dependencies import require_versions
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.tracking.settings import TrackerSettings
from crashproof.tracking.tracker import ProgressTracker

require_versions("accelerate", {"accelerate": "1.1"})

from accelerate import Accelerator, PartialState
from accelerate.tracking import GeneralTracker, on_main_process

__all__ = ["CrashproofTracker"]

log = logging.getLogger("crashproof")

_LEARNING_RATES = ("learning_rate", "lr")
_COUNTS = ("samples", "tokens")


class CrashproofTracker(GeneralTracker):  # type: ignore[misc]  # accelerate brings no types along.
    """A run that a loop with an `Accelerator` writes; only its main process does."""

    name = "crashproof"
    requires_logging_directory = False
    main_process_only = True

    def __init__(
        self,
        output_dir: str | Path,
        *,
        total_steps: int,
        samples_per_step: int = 0,
        on_config_change: str = "error",
        settings: TrackerSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
        disk: Disk = REAL_DISK,
    ) -> None:
        """Touches no disk yet.

        Args:
            output_dir: The run's folder.
            total_steps: Optimizer steps to train.
            samples_per_step: Of all processes; counts what is consumed where `samples` is not logged.
            on_config_change: `error`, or `continue` to go on all the same.
            settings: How often things are written, and what to keep.
            clock: Where the time comes from.
            disk: Where bytes go.
        """
        super().__init__()
        self._kept = KeptRun(
            framework="accelerate",
            output_dir=Path(output_dir),
            on_config_change=on_config_change,
            settings=settings,
            clock=clock,
            disk=disk,
        )
        self._total_steps = total_steps
        self._samples_per_step = samples_per_step
        self._tracker: ProgressTracker | None = None
        self._ends_as = "completed"
        self._knows_where_to_resume = False

    @property
    def tracker(self) -> ProgressTracker | None:
        """The run's writer, from `accelerator.init_trackers` to `accelerator.end_training`, on the main process."""
        return self._tracker

    @on_main_process  # type: ignore[untyped-decorator]
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Open the run with its config.

        Raises:
            ConfigChanged: the config differs and `on_config_change` is `error`.
            OtherRun: the folder holds the run of another program.
            RunInUse: another live process writes the run.
        """
        self._tracker = self._kept.opened(values, self._total_steps)

    @on_main_process  # type: ignore[untyped-decorator]
    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Keep what one optimizer step has reported; without a `loss` it is an evaluation.

        `learning_rate` (or `lr`), `samples` and `tokens` have places of their own; all else is a component of the
        loss. Log a step once, with all that belongs to it.

        Raises:
            ConfigError: no step is given, or training begins at step 0 although the run has checkpoints.
            InvalidMetric: a value is no number; nothing was kept.
        """
        tracker = self._require_open()
        if step is None:
            raise ConfigError(
                "A log without a step cannot be put in order.", hint="Pass accelerator.log(values, step=…)."
            )
        if not self._knows_where_to_resume:
            self._kept.require_resumed(tracker.session, 0)
        if "loss" not in values:
            tracker.record_evaluation(step, values)
            return
        rate = next((values[name] for name in _LEARNING_RATES if name in values), 0.0)
        own = {"loss", *_LEARNING_RATES, *_COUNTS}
        tracker.update_metrics(
            step,
            values["loss"],
            {name: value for name, value in values.items() if name not in own},
            rate,
            values.get("samples", step * self._samples_per_step),
            values.get("tokens", 0),
        )

    @on_main_process  # type: ignore[untyped-decorator]
    def finish(self) -> None:
        """End the attempt; `accelerator.end_training` calls it."""
        if self._tracker is not None:
            self._tracker.close(self._ends_as)

    def end_as(self, how: str) -> None:
        """Say how the attempt ends when training does, such as `preempted`."""
        self._ends_as = how

    def newest_state(self) -> CheckpointMetadata | None:
        """The newest whole state with its absolute path, or None for a fresh start; damaged ones are set aside.

        Ask on every process, after `accelerator.init_trackers`.

        Raises:
            NoUsableCheckpoint: some were recorded and none can be used.
        """
        self._knows_where_to_resume = True
        if not PartialState().is_main_process:
            return self._kept.newest_checkpoint(is_main=False)
        return self._require_open().get_recovery_checkpoint()

    def save_state(self, accelerator: Accelerator, step: int, dataset_position: int) -> Path:
        """Save all that `accelerator` has prepared into `checkpoint_<step>/`, whole or not at all, and record it.

        Call it on every process, between two optimizer steps. The folder gets its name once every process has saved
        and all is durable.

        Args:
            accelerator: Whose state to save.
            step: Optimizer steps done.
            dataset_position: Samples of the training data consumed so far.

        Raises:
            DiskFull, StorageUnwritable: nothing has that name, and it is not recorded.
            ConfigError: the accelerator names its checkpoints itself.
        """
        if accelerator.project_configuration.automatic_checkpoint_naming:
            raise ConfigError(
                "The accelerator names its checkpoints itself, so none could be published whole.",
                hint="Leave automatic_checkpoint_naming out of its ProjectConfiguration.",
            )
        path = self._kept.folder.root / f"checkpoint_{step}"
        with ExitStack() as whole:
            if accelerator.is_main_process:
                tracker = self._require_open()
                begun_at = self._kept.clock.steady()
                self._make_way(path, step)
                whole.enter_context(write_folder_atomically(path, disk=self._kept.disk))
            accelerator.wait_for_everyone()
            accelerator.save_state(str(partial_name(path)))
            # The folder is published as this block is left: by then each has written its part.
            accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            seconds = self._kept.clock.steady() - begun_at
            tracker.record_checkpoint(step, path, dataset_position, seconds=seconds)
        accelerator.wait_for_everyone()
        return path

    def _require_open(self) -> ProgressTracker:
        if self._tracker is None:
            raise ConfigError(
                "The run is not open: it has no config yet.",
                hint='Call accelerator.init_trackers("name", config={…}) first, with Accelerator(log_with=tracker).',
            )
        return self._tracker

    def _make_way(self, path: Path, step: int) -> None:
        """Move aside what a process that died before its record has left, or a timeline that is trained again."""
        if not path.exists():
            return
        left = CheckpointMetadata(
            checkpoint_step=step,
            checkpoint_path=self._kept.folder.recorded_path(path),
            created_at=self._kept.clock.now(),
            metrics=None,
            dataset_position=0,
            recovery_tags=[],
            attempt=0,
        )
        moved_to = move_aside(left, self._kept.folder, disk=self._kept.disk)
        log.warning("%s was there before it was saved; it is kept in %s.", path.name, moved_to)

"""Record a run of Accelerate.

```python
tracker = CrashproofTracker("runs/mine", total_steps=1000)
accelerator = Accelerator(log_with=tracker)
accelerator.init_trackers("mine", config={"lr": 0.01})
```

Then `tracker.newest_state()` is the checkpoint to resume from: `accelerator.load_state(found.checkpoint_path)`.
In the loop, `accelerator.log({"loss": loss, "learning_rate": rate}, step=step)` records a step, and
`tracker.save_state(accelerator, step, position)` saves a checkpoint; `tracker.witness(accelerator, batch)` shows the
step to a proof. `accelerator.end_training()` ends the attempt.
"""

# ruff: noqa: E402 - a missing extra is reported before anything of it is imported.

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from crashproof.adapters.deferred_run import DeferredRun
from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.disk.atomic import partial_name, write_folder_atomically
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.errors import ConfigError, StorageError
from crashproof.notices import Notices
from crashproof.odd_values import OddValues
from crashproof.optional_dependencies import require_versions
from crashproof.plain_values import named_fields
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.tracking.bad_steps.verdict import stops_at_bad_steps
from crashproof.tracking.settings import TrackerSettings
from crashproof.tracking.tracker import ProgressTracker

require_versions("accelerate", {"accelerate": "1.1"})

from accelerate import Accelerator, PartialState
from accelerate.tracking import GeneralTracker, on_main_process

__all__ = ["CrashproofTracker"]

log = logging.getLogger("crashproof")

_LEARNING_RATES = ("learning_rate", "lr")
_COUNTS = ("samples", "tokens")
_WORD = re.compile(r"[a-z]+")
_OF_AN_EVALUATION = frozenset({"dev", "eval", "evaluation", "test", "val", "valid", "validation"})
_OF_TRAINING = frozenset({"loss", "total", "train", "training"})


class CrashproofTracker(GeneralTracker):  # type: ignore[misc]  # accelerate brings no types along.
    """Record the run of a loop with an `Accelerator`; only its main process writes."""

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
        ignore_config_keys: Sequence[str] = (),
        settings: TrackerSettings | None = None,
        on_bad_step: str | None = None,
        clock: Clock = SYSTEM_CLOCK,
        disk: Disk = REAL_DISK,
    ) -> None:
        """Touches no disk yet.

        Args:
            output_dir: The run's folder.
            total_steps: Optimizer steps to train.
            samples_per_step: Samples of all processes; counts what is consumed if `samples` is not logged.
            on_config_change: `error`, or `continue` to resume with the new config.
            ignore_config_keys: Further keys that do not count; see `ProgressTracker`.
            settings: How often to write, and which checkpoints to keep.
            on_bad_step: `stop` lets `accelerator.log` raise `BadStep` where the loss of a step is not finite, or a
                spike; see `ProgressTracker.check_step`. It raises on the main process; the launcher ends the others.
            clock: The source of time.
            disk: The disk to write to.
        """
        super().__init__()
        self._run = DeferredRun(
            framework="accelerate",
            output_dir=Path(output_dir),
            on_config_change=on_config_change,
            ignore_config_keys=ignore_config_keys,
            settings=settings,
            samples_per_step=samples_per_step,
            clock=clock,
            disk=disk,
        )
        self._stops_at_bad_steps = stops_at_bad_steps(on_bad_step)
        self._total_steps = total_steps
        self._samples_per_step = samples_per_step
        self._tracker: ProgressTracker | None = None
        self._ends_as = "completed"
        self._knows_where_to_resume = False
        self._has_ended = False
        self._notices = Notices()
        self._odd_values = OddValues()

    @property
    def tracker(self) -> ProgressTracker | None:
        """The run's writer, from `accelerator.init_trackers` to `accelerator.end_training`, on the main process."""
        return self._tracker

    @on_main_process  # type: ignore[untyped-decorator]
    def store_init_configuration(self, values: dict[str, object]) -> None:
        """Open the run with its config, or again after its end; while it is open, a second call changes nothing.

        Raises:
            ConfigChanged: the config differs and `on_config_change` is `error`.
            OtherRun: the folder holds the run of another program.
            RunInUse: another live process writes the run.
        """
        if self._tracker is not None and not self._has_ended:
            self._notices.warn("config", "init_trackers was called again: the run keeps its config.")
            return
        self._run.take_up()
        self._tracker = self._run.open(named_fields(values) or {}, self._total_steps)
        self._has_ended, self._ends_as = False, "completed"

    @on_main_process  # type: ignore[untyped-decorator]
    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: object) -> None:
        """Record the metrics of one optimizer step; without a loss they are an evaluation.

        The loss is `loss`, or else what is named as one of training, such as `train_loss` or `train/loss`; of several
        (`d_loss`, `g_loss`) none is the loss of the step. `learning_rate` (or `lr`), `samples` and `tokens` have
        fields of their own; all else is a component of the loss. Log each step once, with everything that belongs to
        it. Without `step`, metrics with a loss are those of the next step, and others those of the newest.

        What cannot be recorded is named once in the log, and training continues.

        Raises:
            ConfigError: training begins at step 0 although the run has checkpoints.
            BadStep: the loss is not finite, or a spike, and `on_bad_step` is `stop`; the step is recorded.
        """
        tracker = self._open_for_logging()
        if tracker is None:
            return
        if not self._knows_where_to_resume:
            # A loop that goes on behind the newest checkpoint has loaded it by itself.
            newest = tracker.session.last_checkpoint_step or 0
            self._run.require_resumed(tracker.session, step if step is not None and step > newest else 0)
            self._knows_where_to_resume = True
        flat = self._odd_values.numbers(values, "logs")
        losses = _losses_among(flat)
        num_steps = self._num_steps(step, is_update=bool(losses), newest=tracker.session.steps_completed)
        if losses:
            self._record_step(tracker, num_steps, flat, losses)
            if self._stops_at_bad_steps:
                tracker.check_step().raise_if_bad()
            return
        if flat:
            self._notices.warn(
                "loss",
                "Metrics without a loss were logged (%s): they are recorded as an evaluation of step %d, and do not "
                'advance the run. Pass {"loss": …} to record a step.',
                ", ".join(list(flat)[:5]),
                num_steps,
            )
        tracker.record_evaluation(num_steps, flat)

    @on_main_process  # type: ignore[untyped-decorator]
    def finish(self) -> None:
        """End the attempt; `accelerator.end_training` calls it. A second call does nothing."""
        if self._tracker is not None:
            self._tracker.close(self._ends_as)
            self._has_ended = True

    def witness(self, accelerator: Accelerator, batch: object = None) -> None:
        """Show `crashproof prove` what `accelerator` has prepared, after the step's `accelerator.log`.

        Costs nothing unless a proof is under way.

        Args:
            accelerator: Whose models, optimizers, schedules and scaler to show.
            batch: The ids of the step's samples, or its batches.
        """
        if self._tracker is not None and self._tracker.is_under_proof:
            self._tracker.witness(
                model=accelerator._models,
                optimizer=accelerator._optimizers,
                scheduler=accelerator._schedulers,
                scaler=accelerator.scaler,
                batch=batch,
            )

    def end_as(self, how: str) -> None:
        """Set how the attempt ends, such as `preempted`."""
        self._ends_as = how

    def newest_state(self) -> CheckpointMetadata | None:
        """The newest intact state with its absolute path, or None for a fresh start; quarantines damaged ones.

        Call it on every process, after `accelerator.init_trackers`.

        Raises:
            NoUsableCheckpoint: some were recorded and none can be used.
        """
        self._knows_where_to_resume = True
        if not PartialState().is_main_process:
            return self._run.newest_checkpoint(is_main=False)
        return self._require_open().get_recovery_checkpoint()

    def save_state(self, accelerator: Accelerator, step: int, dataset_position: int) -> Path:
        """Save everything that `accelerator` has prepared into `checkpoint_<step>/`, atomically, and record it.

        Call it on every process, between two optimizer steps. The folder gets its name once every process has saved
        and everything is durable.

        Args:
            accelerator: Whose state to save.
            step: Optimizer steps done.
            dataset_position: Samples of the training data consumed so far.

        Raises:
            DiskFull, StorageUnwritable: no such checkpoint exists, and none is recorded; the failure is.
            SavesFailed: likewise, and more saves in a row have failed than `max_failed_saves` of the settings allows.
            ConfigError: the accelerator names its checkpoints itself.
        """
        if accelerator.project_configuration.automatic_checkpoint_naming:
            raise ConfigError(
                "The accelerator names its checkpoints itself, so none could be saved atomically.",
                hint="Leave automatic_checkpoint_naming out of its ProjectConfiguration.",
            )
        path = self._run.folder.root / f"checkpoint_{step}"
        with ExitStack() as saving:
            if accelerator.is_main_process:
                tracker = self._require_open()
                begun_at = self._run.clock.steady()
                saving.enter_context(_counting_failure(tracker, step))
                if path.exists():
                    # What a killed process left unrecorded, or what a superseded attempt saved.
                    tracker.quarantine_checkpoint(path, step, "it existed before it was saved")
                saving.enter_context(write_folder_atomically(path, disk=self._run.disk))
            accelerator.wait_for_everyone()
            accelerator.save_state(str(partial_name(path)))
            # The folder is published at the end of this block: by then each process has written its part.
            accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            seconds = self._run.clock.steady() - begun_at
            tracker.record_checkpoint(step, path, dataset_position, seconds=seconds)
        accelerator.wait_for_everyone()
        return path

    def _open_for_logging(self) -> ProgressTracker | None:
        """The writer; None after the end. A run for which `init_trackers` got no config opens now."""
        if self._has_ended:
            self._notices.warn("end", "Metrics were logged after end_training: they are not recorded.")
            return None
        if self._tracker is None:
            log.warning("accelerator.init_trackers got no config: a change of it will go unnoticed. Pass config={…}.")
            self._tracker = self._run.open_without_config(self._total_steps)
        return self._tracker

    def _num_steps(self, step: object, *, is_update: bool, newest: int) -> int:
        """The optimizer steps done, where the caller gave none, or no count."""
        otherwise = newest + 1 if is_update else newest
        if step is None:
            self._notices.warn(
                "step", "Metrics were logged without a step: steps are counted. Pass accelerator.log(values, step=…)."
            )
            return otherwise
        return self._odd_values.count(step, "step", otherwise=otherwise)

    def _record_step(self, tracker: ProgressTracker, step: int, flat: dict[str, object], losses: list[str]) -> None:
        rates = [name for name in _LEARNING_RATES if name in flat]
        own = {*losses[:1], *_COUNTS, *rates} if len(losses) == 1 else {*_COUNTS, *rates}
        tracker.update_metrics(
            step,
            flat[losses[0]] if len(losses) == 1 else None,
            {name: value for name, value in flat.items() if name not in own},
            flat[rates[0]] if rates else 0.0,
            flat.get("samples", step * self._samples_per_step),  # type: ignore[arg-type]  # Any number is converted.
            flat.get("tokens", 0),  # type: ignore[arg-type]
        )

    def _require_open(self) -> ProgressTracker:
        if self._tracker is None:
            raise ConfigError(
                "The run is not open: it has no config yet.",
                hint='Call accelerator.init_trackers("name", config={…}) first, with Accelerator(log_with=tracker).',
            )
        return self._tracker


@contextmanager
def _counting_failure(tracker: ProgressTracker, step: int) -> Iterator[None]:
    """Record that a save has failed, for loops that catch the error and go on."""
    try:
        yield
    except (StorageError, OSError) as error:
        tracker.record_checkpoint_failure(step, error)
        raise


def _losses_among(names: Iterable[str]) -> list[str]:
    """The name of a step's loss, the names of its losses where none is that of the step, or no name at all."""
    words = {name: set(_WORD.findall(name.lower())) for name in names}
    losses = [name for name, found in words.items() if "loss" in found and not found & _OF_AN_EVALUATION]
    if "loss" in losses:
        return ["loss"]
    return [name for name in losses if words[name] <= _OF_TRAINING][:1] or losses

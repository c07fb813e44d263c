"""Record a run of PyTorch Lightning.

```python
hold = Crashproof("runs/mine")
trainer = Trainer(callbacks=[hold.callback], logger=hold.logger, plugins=[hold.checkpoint_io], max_epochs=3)
trainer.fit(model, ckpt_path=hold.newest_checkpoint())
```

The classes are those of `lightning.pytorch`. The package `pytorch_lightning` has a second copy of them, which
does not accept these; `lightning` depends on `pytorch_lightning`, so it is the one supported.
"""

# ruff: noqa: E402 - a missing extra is reported before anything of it is imported.

from __future__ import annotations

import logging
import math
import signal
from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from crashproof.adapters.deferred_run import DeferredRun
from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.disk.run_folder import is_remote
from crashproof.errors import CheckpointMismatch, ConfigError
from crashproof.optional_dependencies import require_versions
from crashproof.reading.run_state import read_run
from crashproof.tracking.settings import TrackerSettings
from crashproof.tracking.tracker import ProgressTracker

require_versions("lightning", {"lightning": "2.4"})

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.optim import Optimizer

from crashproof.adapters.resumable_loader import ResumableLoader
from crashproof.pytorch.checkpoint_file import load_checkpoint, save_checkpoint
from crashproof.pytorch.interrupts import EXIT_PREEMPTED, Interrupts
from crashproof.pytorch.random_state import capture_random_state, restore_random_state
from crashproof.rules.checkpoint_catalog import CheckpointCatalog

__all__ = ["Crashproof", "CrashproofCallback", "CrashproofCheckpointIO", "CrashproofLogger", "ResumableLoader"]

log = logging.getLogger("crashproof")

_OURS = "crashproof"
"""The key in a checkpoint for what Lightning does not save."""


class Crashproof:
    """Record the run of a Lightning `Trainer`: a callback, a logger and a checkpoint plugin that belong together."""

    def __init__(
        self,
        output_dir: str | Path,
        *,
        config: Mapping[str, object] | None = None,
        total_steps: int | None = None,
        on_config_change: str = "error",
        ignore_config_keys: Sequence[str] = (),
        settings: TrackerSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
        disk: Disk = REAL_DISK,
    ) -> None:
        """Touches no disk yet.

        Args:
            output_dir: The run's folder.
            config: The config of the run; hyperparameters that Lightning logs are added.
            total_steps: Optimizer steps to train; the trainer's own estimate if not given.
            on_config_change: `error`, or `continue` to resume with the new config.
            ignore_config_keys: Further keys that do not count; see `ProgressTracker`.
            settings: How often to write, and which checkpoints to keep.
            clock: The source of time.
            disk: The disk to write to.
        """
        run = DeferredRun(
            framework="lightning",
            output_dir=Path(output_dir),
            on_config_change=on_config_change,
            ignore_config_keys=ignore_config_keys,
            settings=settings,
            clock=clock,
            disk=disk,
        )
        self._shared = _SharedRun(run, dict(config or {}), total_steps)
        self.checkpoint_io = CrashproofCheckpointIO(self._shared)
        """For `Trainer(plugins=[…])`: checkpoints that are written atomically."""
        self.callback = CrashproofCallback(self._shared, self.checkpoint_io)
        """For `Trainer(callbacks=[…])`: every step's loss, evaluations, random states and the end of the run."""
        self.logger = CrashproofLogger(self._shared)
        """For `Trainer(logger=…)`: hyperparameters, and metrics that are logged once an epoch."""

    @property
    def output_dir(self) -> Path:
        """The run's folder."""
        return self._shared.run.output_dir

    def newest_checkpoint(self) -> str | None:
        """The newest intact checkpoint for `trainer.fit(ckpt_path=…)`, or None for a fresh start.

        Raises:
            NoUsableCheckpoint: some were recorded and none can be used.
            OtherRun: the folder holds the run of another program.
            RunInUse: another live process writes the run, and a damaged checkpoint must be quarantined.
        """
        rank = cast(int, getattr(rank_zero_only, "rank", 0) or 0)
        found = self._shared.run.newest_checkpoint(is_main=rank == 0)
        return None if found is None else found.checkpoint_path


class _SharedRun:
    """The state that the three parts share."""

    def __init__(self, run: DeferredRun, config: dict[str, object], total_steps: int | None) -> None:
        self.run = run
        self.config = config
        self.total_steps = total_steps
        self.tracker: ProgressTracker | None = None
        """The run's writer while the trainer fits, on the main process."""
        self.trainer: Trainer | None = None
        """Known once the callback is set up."""
        self.samples = 0
        """The samples consumed by all processes since the beginning of the run."""
        self.step_components: set[str] = set()
        """The names recorded as components of a step's loss."""
        self.pending: dict[str, object] = {}
        """What other callbacks have logged for the current step."""
        self.is_epoch_over = False

    def require_trainer(self, part: str) -> Trainer:
        if self.trainer is None:
            raise ConfigError(
                f"hold.{part} is used without hold.callback.", hint="Pass Trainer(callbacks=[hold.callback], …)."
            )
        return self.trainer


class _Preempted(SIGTERMException):
    """Leave `trainer.fit`, and the program with the exit code for "start me again"."""

    def __init__(self) -> None:
        super().__init__(EXIT_PREEMPTED)


class CrashproofCallback(Callback):
    """Record every optimizer step; created by `Crashproof`.

    On a request to stop (SIGTERM, SIGUSR1, Ctrl-C) it finishes the optimizer step, saves `checkpoint_<step>.ckpt` and
    leaves `trainer.fit` with `SystemExit(75)`. If SIGUSR1 has a handler, as with Lightning's own requeueing on SLURM,
    it handles no signals, and the run stops at the first step after Lightning has received SIGTERM.
    """

    def __init__(self, shared: _SharedRun, checkpoint_io: CrashproofCheckpointIO) -> None:
        self._shared = shared
        self._checkpoint_io = checkpoint_io
        self._interrupts: Interrupts | None = None
        self._restored: dict[str, Any] | None = None
        self._last_step = 0
        self._learning_rate: Tensor | float = 0.0
        self._losses: list[Any] = []
        self._has_warned_of_no_loss = False
        self._has_warned_of_accumulated_batches = False
        self._seen: Mapping[str, object] = {}
        self._state_in_training: dict[str, Any] | None = None
        self._validation_began = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the parts are used together."""
        if stage != "fit":
            return
        if trainer.strategy.checkpoint_io is not self._checkpoint_io:
            raise ConfigError(
                "hold.callback is used without hold.checkpoint_io, so no checkpoint could be verified.",
                hint="Pass Trainer(plugins=[hold.checkpoint_io], …).",
            )
        self._shared.trainer = trainer
        self._restored = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning leaves out: random states of each process, and the position in the data."""
        self._report_accumulated_batches(trainer)
        states: list[Any] = [capture_random_state()]
        if trainer.world_size > 1:
            own, states = states[0], [None] * trainer.world_size
            torch.distributed.all_gather_object(states, own)
        loader = trainer.train_dataloader
        checkpoint[_OURS] = {
            "samples": self._shared.samples,
            "random_states": states,
            "is_epoch_end": trainer.is_last_batch,
            "loader": loader.state_dict() if isinstance(loader, ResumableLoader) else None,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the state until training begins: what comes in between draws random numbers."""
        if trainer.state.fn != "fit":
            return
        self._restored = checkpoint.get(_OURS)
        if self._restored is None:
            log.warning("The checkpoint was saved without crashproof: random states and the data order start over.")
        else:
            self._shared.samples = self._restored["samples"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the random state after an epoch's end, before the data loader draws a seed for the next epoch."""
        if self._restored is not None and self._restored["is_epoch_end"]:
            self._restore_random_state(trainer, self._restored)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the run and restore the state of a resumed one."""
        step = self._last_step = trainer.global_step
        self._losses = []
        self._mark_saved(trainer)
        self._seen = dict(trainer.logged_metrics)
        self._shared.is_epoch_over, self._shared.pending = False, {}
        if trainer.is_global_zero:
            total_steps = self._total_steps(trainer)
            self._shared.run.require_resumed(read_run(self._shared.run.folder).session, step)
            self._shared.tracker = self._shared.run.open(self._shared.config, total_steps)
        if signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
            self._interrupts = Interrupts().__enter__()
        loader = trainer.train_dataloader
        if (
            self._restored is not None
            and isinstance(loader, ResumableLoader)
            and self._restored["loader"] is not None
        ):
            # Lightning loads it too, but not if configure_optimizers has read the number of steps.
            loader.load_state_dict(self._restored["loader"])
            # Lightning may still open the validation data first, which draws a number.
            loader.before_first_batch = partial(self._restore_random_state, trainer, self._restored)
        elif self._restored is not None and not self._restored["is_epoch_end"]:
            self._restore_random_state(trainer, self._restored)
        self._state_in_training = capture_random_state()
        self._restored = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Note the learning rate that is used: the schedule changes it before the batch ends."""
        rate = optimizer.param_groups[0]["lr"]
        self._learning_rate = rate.clone() if isinstance(rate, Tensor) else rate

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Any, batch_idx: int
    ) -> None:
        """Record the step after its last batch, and stop if that was requested."""
        self._losses.append(outputs.get("loss") if isinstance(outputs, Mapping) else outputs)
        self._shared.samples += extract_batch_size(batch) * trainer.world_size
        if trainer.global_step != self._last_step:
            self._last_step = trainer.global_step
            self._record_step(trainer)
            if self._is_stop_requested(trainer):
                trainer.save_checkpoint(self._shared.run.folder.root / f"checkpoint_{trainer.global_step}.ckpt")
                raise _Preempted
        self._state_in_training = capture_random_state()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the time, and the metrics logged so far."""
        self._validation_began = self._shared.run.clock.steady()
        self._seen = dict(trainer.callback_metrics)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the results, and restore the random state of training.

        After a resume Lightning does not repeat a validation that followed the checkpoint. So whether it takes place
        must not change what training draws.
        """
        if trainer.sanity_checking:
            return
        if self._state_in_training is not None and trainer.state.fn == "fit":
            restore_random_state(self._state_in_training)
        if self._shared.tracker is not None:
            results = _newly_logged(trainer.callback_metrics, self._seen)
            seconds = self._shared.run.clock.steady() - self._validation_began
            self._shared.tracker.record_evaluation(trainer.global_step, results, seconds)
        self._seen = dict(trainer.logged_metrics)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Assign what is logged from here on to a step."""
        self._shared.is_epoch_over = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Assign what is logged from here on to the epoch."""
        self._shared.is_epoch_over = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the signal handlers."""
        self._stop_listening()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the attempt; the last checkpoints are saved by now."""
        self._close("completed", None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the attempt as preempted or raised."""
        self._stop_listening()
        if isinstance(exception, SIGTERMException):
            self._close("preempted", None)
        else:
            self._close("raised", exception)

    def _record_step(self, trainer: Trainer) -> None:
        loss = self._mean_loss(trainer)
        if self._shared.tracker is None:
            return
        logged = dict(trainer.logged_metrics)
        components = _newly_logged(logged, self._seen)
        self._seen = logged
        components, self._shared.pending = {**self._shared.pending, **components}, {}
        self._shared.step_components |= logged.keys() & components.keys()
        self._shared.tracker.update_metrics(
            trainer.global_step, loss, components, self._learning_rate, self._shared.samples, 0
        )

    def _mean_loss(self, trainer: Trainer) -> Any:
        """The mean loss of the step's batches, on its device; NaN if `training_step` returned none."""
        losses, self._losses = [each for each in self._losses if each is not None], []
        if not losses:
            if not self._has_warned_of_no_loss:
                log.warning("Step %d has no loss: training_step returned none. Recording NaN.", trainer.global_step)
                self._has_warned_of_no_loss = True
            return math.nan
        if len(losses) == 1 and trainer.accumulate_grad_batches == 1:
            return losses[0]
        # Lightning has divided each by the number of batches of a full step.
        return torch.stack(losses).sum() * (trainer.accumulate_grad_batches / len(losses))

    def _total_steps(self, trainer: Trainer) -> int:
        if self._shared.total_steps is not None:
            return self._shared.total_steps
        estimate = trainer.estimated_stepping_batches
        if math.isinf(estimate):
            raise ConfigError(
                "The number of training steps is unknown: there is neither max_steps nor data of a known length.",
                hint="Pass Trainer(max_steps=…), or Crashproof(…, total_steps=…).",
            )
        return int(estimate)

    @staticmethod
    def _mark_saved(trainer: Trainer) -> None:
        """Keep each `ModelCheckpoint` from saving the step that training resumes from once more.

        It does not remember across processes what it has saved. So it would save that step again after the next
        batch, where batches are accumulated: without the gradients of that batch, and behind it in the data.
        """
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                callback._last_global_step_saved = trainer.global_step

    def _report_accumulated_batches(self, trainer: Trainer) -> None:
        if self._losses and trainer.global_step == self._last_step and not self._has_warned_of_accumulated_batches:
            log.warning(
                "A checkpoint is saved after step %d, between the accumulated batches of the next: it lacks their "
                "gradients, so training that resumes from it has other weights than without a stop. "
                "To avoid this, save every n steps instead of at intervals of time.",
                trainer.global_step,
            )
            self._has_warned_of_accumulated_batches = True

    @staticmethod
    def _restore_random_state(trainer: Trainer, restored: Mapping[str, Any]) -> None:
        states = restored["random_states"]
        if len(states) == trainer.world_size:
            restore_random_state(states[trainer.global_rank])
        else:
            log.warning(
                "The checkpoint is of %d process(es), now there are %d: random states start over.",
                len(states),
                trainer.world_size,
            )

    def _is_stop_requested(self, trainer: Trainer) -> bool:
        is_requested = trainer.received_sigterm or (self._interrupts is not None and self._interrupts.is_requested)
        return (
            bool(trainer.strategy.reduce_boolean_decision(is_requested, all=False))
            if trainer.world_size > 1
            else is_requested
        )

    def _stop_listening(self) -> None:
        if self._interrupts is not None:
            self._interrupts.__exit__(None, None, None)
            self._interrupts = None

    def _close(self, how: str, error: BaseException | None) -> None:
        if self._shared.tracker is not None:
            tracker, self._shared.tracker = self._shared.tracker, None
            tracker.close(how, error)


def _newly_logged(logged: Mapping[str, object], seen: Mapping[str, object]) -> dict[str, object]:
    """What was logged since `seen`: Lightning repeats the rest as the same objects."""
    return {name: value for name, value in logged.items() if name not in seen or not _is_same(seen[name], value)}


def _is_same(seen: object, value: object) -> bool:
    if isinstance(seen, Tensor) and isinstance(value, Tensor):
        # `seen` keeps its memory alive, so a new tensor has another address.
        return seen.data_ptr() == value.data_ptr()
    return seen is value


class CrashproofLogger(Logger):
    """Add hyperparameters to the run's config, and record the remaining metrics; created by `Crashproof`.

    The callback records what `training_step` logs with each step, and what validation logs with its evaluation. Of
    the rest, means over an epoch are recorded with the evaluation of its last step; what other callbacks log in
    mid-epoch, such as `LearningRateMonitor`, become components of the next step.
    """

    def __init__(self, shared: _SharedRun) -> None:
        super().__init__()
        self._shared = shared

    @property
    def name(self) -> str:
        """Empty: a run is named by its folder, and `ModelCheckpoint` saves below it."""
        return ""

    @property
    def version(self) -> str:
        """Empty: the attempts of a run are not versions of it."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self._shared.run.output_dir)

    @property
    def experiment(self) -> ProgressTracker | None:
        """The run's writer while the trainer fits, on the main process."""
        return self._shared.tracker

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: object, **kwargs: object) -> None:
        """Add them to the config, before training begins."""
        values = vars(params) if isinstance(params, Namespace) else dict(params)
        if self._shared.tracker is not None:
            log.warning(
                "Ignoring hyperparameters logged during training: the run's config is fixed at its beginning."
            )
            return
        self._shared.config.update(values)

    def log_metrics(self, metrics: Mapping[str, object], step: int | None = None) -> None:
        """Record what the callback does not."""
        trainer = self._shared.require_trainer("logger")
        if self._shared.tracker is None or trainer.validating:
            return
        rest = {
            name: value for name, value in metrics.items() if name not in self._shared.step_components | {"epoch"}
        }
        if rest and self._shared.is_epoch_over:
            self._shared.tracker.record_evaluation(trainer.global_step, rest)
        else:
            self._shared.pending |= rest


class CrashproofCheckpointIO(CheckpointIO):
    """Write checkpoints atomically, and read them as data; created by `Crashproof`.

    One that training can resume from is recorded as soon as it is durable. `ModelCheckpoint` decides which to remove;
    each is removed once a newer one has been read back and found intact.
    """

    def __init__(self, shared: _SharedRun) -> None:
        self._shared = shared
        self._unwanted: list[Path] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        """Write the checkpoint, and record it once it is durable.

        Raises:
            CheckpointMismatch: it contains more than data, so it could not be loaded again.
            DiskFull, StorageUnwritable: an older file of this name is unchanged.
        """
        self._shared.require_trainer("checkpoint_io")
        if storage_options is not None or is_remote(str(path)):
            raise ConfigError(
                f"{path} is not on a file system, so it cannot be written atomically.",
                hint="Save into the run's folder: leave ModelCheckpoint's dirpath out, or name a folder.",
            )
        path = Path(path)
        run = self._shared.run
        run.disk.make_folders(path.parent)
        written = save_checkpoint(path, checkpoint, disk=run.disk)
        self._require_data(path)
        if self._shared.tracker is None or "optimizer_states" not in checkpoint:
            log.info("Wrote %s without recording it: training cannot resume from it.", path)
            return
        self._shared.tracker.record_checkpoint(checkpoint["global_step"], path, self._shared.samples, written=written)

    def load_checkpoint(
        self, path: str | Path, map_location: object = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Verify every byte and load it on the CPU; always as data, whatever `weights_only` is.

        Raises:
            CheckpointDamaged: it is missing, torn, altered, or contains more than data.
        """
        return load_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove it, and those kept by earlier calls; one that cannot be removed yet is left to a later call."""
        if self._shared.tracker is None:
            log.info("Keeping %s: checkpoints are removed only while their run is open.", path)
            return
        self._unwanted.append(Path(path))
        self._unwanted = [each for each in self._unwanted if not self._remove(each, self._shared.tracker)]

    def _remove(self, path: Path, tracker: ProgressTracker) -> bool:
        """Remove a checkpoint unless the run still needs it; return whether it is gone."""
        folder = self._shared.run.folder
        if CheckpointCatalog(tracker.session).at_path(folder.recorded_path(path)) is not None:
            return tracker.remove_checkpoint(path)
        if path.is_file():
            self._shared.run.disk.remove_file(path)
        return True

    def _require_data(self, path: Path) -> None:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if found:
            raise CheckpointMismatch(path, reason=f"it contains {', '.join(sorted(found))}, which is more than data")

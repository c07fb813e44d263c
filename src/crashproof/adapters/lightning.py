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
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, cast

from crashproof.adapters.deferred_run import DeferredRun
from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.errors import ConfigError
from crashproof.notices import Notices
from crashproof.optional_dependencies import require_versions
from crashproof.reading.run_state import read_run
from crashproof.tracking.bad_steps.verdict import StepVerdict, stops_at_bad_steps
from crashproof.tracking.settings import TrackerSettings

require_versions("lightning", {"lightning": "2.4"})

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.optim import Optimizer

from crashproof.adapters.batches import num_samples
from crashproof.adapters.lightning_checkpoints import CrashproofCheckpointIO
from crashproof.adapters.lightning_logger import CrashproofLogger, newly_logged
from crashproof.adapters.lightning_run import SharedRun
from crashproof.adapters.resumable_loader import ResumableLoader
from crashproof.adapters.step_values import learning_rate_of, scalar_loss
from crashproof.pytorch.interrupts import EXIT_PREEMPTED, Interrupts
from crashproof.pytorch.random_state import capture_random_state, restore_random_state

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
        on_bad_step: str | None = None,
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
            on_bad_step: `stop` ends `trainer.fit` with `BadStep` where the loss of a step is not finite, or a spike;
                see `ProgressTracker.check_step`. Several processes exchange this after each step.
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
        self._shared = SharedRun(run, dict(config or {}), total_steps)
        self.checkpoint_io = CrashproofCheckpointIO(self._shared)
        """For `Trainer(plugins=[…])`: checkpoints that are written atomically."""
        self.callback = CrashproofCallback(
            self._shared, self.checkpoint_io, stops_at_bad_steps=stops_at_bad_steps(on_bad_step)
        )
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

    def __init__(
        self, shared: SharedRun, checkpoint_io: CrashproofCheckpointIO, *, stops_at_bad_steps: bool = False
    ) -> None:
        self._shared = shared
        self._stops_at_bad_steps = stops_at_bad_steps
        self._checkpoint_io = checkpoint_io
        self._interrupts: Interrupts | None = None
        self._restored: dict[str, Any] | None = None
        self._last_step = 0
        self._learning_rate: Tensor | float = 0.0
        self._losses: list[Tensor] = []
        self._batches: list[object] = []
        """Of the step so far, where a proof wants to see them."""
        self._is_recording = False
        """Whether what the trainer does is training that belongs to the run."""
        self._has_opened = False
        self._notices = Notices()
        self._seen: Mapping[str, object] = {}
        self._state_in_training: dict[str, Any] | None = None
        self._validation_began = 0.0
        self._validation = ExitStack()
        """The phase that a supervisor is shown."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the parts are used together."""
        self._shared.trainer = trainer
        self._is_recording = stage == "fit" and not _is_trial(trainer)
        self._has_opened = False
        if stage == "fit" and _is_trial(trainer):
            log.warning("fast_dev_run: nothing is recorded.")
        if not self._is_recording:
            return
        if trainer.strategy.checkpoint_io is not self._checkpoint_io:
            raise ConfigError(
                "hold.callback is used without hold.checkpoint_io, so no checkpoint could be verified.",
                hint="Pass Trainer(plugins=[hold.checkpoint_io], …).",
            )
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
        if not self._is_recording:
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
        if not self._is_recording:
            return
        if self._restored is None and not trainer.global_step:
            self._shared.samples = 0
        step = self._last_step = trainer.global_step
        self._losses, self._batches = [], []
        self._mark_saved(trainer)
        self._seen = dict(trainer.logged_metrics)
        self._shared.is_epoch_over, self._shared.pending = False, {}
        if trainer.is_global_zero:
            total_steps = self._total_steps(trainer, pl_module)
            self._shared.run.require_resumed(read_run(self._shared.run.folder).session, step)
            self._shared.tracker = self._shared.run.open(self._shared.config, total_steps)
            self._has_opened = True
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
        self._learning_rate = learning_rate_of(optimizer, self._notices)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Any, batch_idx: int
    ) -> None:
        """Record the step after its last batch, and stop if that was requested."""
        if not self._is_recording:
            return
        loss = scalar_loss(outputs.get("loss") if isinstance(outputs, Mapping) else outputs, self._notices)
        if loss is not None:
            self._losses.append(loss)
        samples = num_samples(batch)
        if not samples:
            self._notices.warn(
                "samples", "A batch of type %s cannot be counted: it adds no samples.", type(batch).__name__
            )
        self._shared.samples += samples * trainer.world_size
        if self._shared.tracker is not None and self._shared.tracker.is_under_proof:
            self._batches.append(batch)
        if trainer.global_step != self._last_step:
            self._last_step = trainer.global_step
            self._record_step(trainer)
            if self._stops_at_bad_steps:
                self._stop_at_bad_step(trainer)
            if self._is_stop_requested(trainer):
                trainer.save_checkpoint(self._shared.run.folder.root / f"checkpoint_{trainer.global_step}.ckpt")
                raise _Preempted
        self._state_in_training = capture_random_state()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the time, and the metrics logged so far."""
        if self._shared.tracker is not None:
            self._validation.enter_context(self._shared.tracker.phase("evaluating"))
        self._validation_began = self._shared.run.clock.steady()
        self._seen = dict(trainer.callback_metrics)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the results, and restore the random state of training.

        After a resume Lightning does not repeat a validation that followed the checkpoint. So whether it takes place
        must not change what training draws.
        """
        self._validation.close()
        if trainer.sanity_checking:
            return
        if self._state_in_training is not None and self._is_recording:
            restore_random_state(self._state_in_training)
        if self._shared.tracker is not None:
            results = newly_logged(trainer.callback_metrics, self._seen)
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
        if self._is_recording and not self._has_opened and trainer.is_global_zero:
            self._complete_finished(trainer)
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
        components = newly_logged(logged, self._seen)
        self._seen = logged
        components, self._shared.pending = {**self._shared.pending, **components}, {}
        self._shared.step_components |= logged.keys() & components.keys()
        self._shared.tracker.update_metrics(
            trainer.global_step, loss, components, self._learning_rate, self._shared.samples, 0
        )
        batches, self._batches = self._batches, []
        self._shared.tracker.witness(
            model=trainer.lightning_module,
            optimizer=trainer.optimizers,
            scheduler=[each.scheduler for each in trainer.lr_scheduler_configs],
            scaler=getattr(trainer.precision_plugin, "scaler", None),
            batch=batches,
        )

    def _stop_at_bad_step(self, trainer: Trainer) -> None:
        """Raise on all processes what the main one has found."""
        tracker = self._shared.tracker
        verdict = StepVerdict() if tracker is None else tracker.check_step()
        if trainer.world_size > 1:
            verdict = trainer.strategy.broadcast(verdict)
        verdict.raise_if_bad()

    def _complete_finished(self, trainer: Trainer) -> None:
        """Record that a run is complete whose checkpoint left nothing to train."""
        session = read_run(self._shared.run.folder).session
        if session is None or not trainer.global_step:
            return
        log.info("Nothing is left to train: %s steps are done.", f"{trainer.global_step:,}")
        self._shared.tracker = self._shared.run.open(self._shared.config, session.total_steps_target)

    def _mean_loss(self, trainer: Trainer) -> Tensor | None:
        """The mean loss of the step's batches, on its device; None if `training_step` returned none."""
        losses, self._losses = self._losses, []
        if not losses:
            return None
        if len(losses) == 1 and trainer.accumulate_grad_batches == 1:
            return losses[0]
        # Lightning has divided each by the number of batches of a full step.
        return torch.stack(losses).sum() * (trainer.accumulate_grad_batches / len(losses))

    def _total_steps(self, trainer: Trainer, pl_module: LightningModule) -> int:
        if self._shared.total_steps is not None:
            return self._shared.total_steps
        estimate = trainer.estimated_stepping_batches
        if math.isinf(estimate):
            raise ConfigError(
                "The number of training steps is unknown: there is neither max_steps nor data of a known length.",
                hint="Pass Trainer(max_steps=…), or Crashproof(…, total_steps=…).",
            )
        is_of_batches = trainer.max_steps == -1 and not pl_module.automatic_optimization
        # The estimate counts batches; in manual optimization each optimizer's step counts as one.
        return int(estimate) * (max(1, len(trainer.optimizers)) if is_of_batches else 1)

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
        if self._losses and trainer.global_step == self._last_step:
            self._notices.warn(
                "accumulated batches",
                "A checkpoint is saved after step %d, between the accumulated batches of the next: it lacks their "
                "gradients, so training that resumes from it has other weights than without a stop. "
                "To avoid this, save every n steps instead of at intervals of time.",
                trainer.global_step,
            )

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


def _is_trial(trainer: Trainer) -> bool:
    """Whether the trainer only tries its code out, and saves nothing."""
    return bool(getattr(trainer, "fast_dev_run", False))

"""PyTorch Lightning, kept whole.

```python
hold = Crashproof("runs/mine")
trainer = Trainer(callbacks=[hold.callback], logger=hold.logger, plugins=[hold.checkpoint_io], max_epochs=3)
trainer.fit(model, ckpt_path=hold.newest_checkpoint())
```

The classes are those of `lightning.pytorch`. The package `pytorch_lightning` holds a second copy of them, which
refuses these; one of the two had to be chosen, and `lightning` brings the other along.
"""

# ruff: noqa: E402 - a missing extra is reported before anything of it is imported.

from __future__ import annotations

import logging
import math
import signal
from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from crashproof.adapters.deferred_run import KeptRun
from crashproof.checkpoints.delete import is_remote
from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.errors import CheckpointMismatch, ConfigError
from crashproof.optional_dependencies import require_versions
from crashproof.reading.run_state import read_run
from crashproof.tracking.settings import TrackerSettings
from crashproof.tracking.tracker import ProgressTracker

require_versions("lightning", {"lightning": "2.4"})

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from crashproof.adapters.resumable_loader import ResumableLoader
from crashproof.pytorch.checkpoint_file import load_checkpoint, save_checkpoint
from crashproof.pytorch.interrupts import EXIT_PREEMPTED, Interrupts
from crashproof.pytorch.random_state import capture_random_state, restore_random_state

__all__ = ["Crashproof", "CrashproofCallback", "CrashproofCheckpointIO", "CrashproofLogger", "ResumableLoader"]

log = logging.getLogger("crashproof")

_OURS = "crashproof"
"""The key of a checkpoint that holds what Lightning does not save."""


class Crashproof:
    """A run that a Lightning `Trainer` writes: a callback, a logger and a checkpoint plugin that belong together."""

    def __init__(
        self,
        output_dir: str | Path,
        *,
        config: Mapping[str, Any] | None = None,
        total_steps: int | None = None,
        on_config_change: str = "error",
        settings: TrackerSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
        disk: Disk = REAL_DISK,
    ) -> None:
        """Touches no disk yet.

        Args:
            output_dir: The run's folder.
            config: What the run is; hyperparameters that Lightning logs are added.
            total_steps: Optimizer steps to train; the trainer's own estimate where not given.
            on_config_change: `error`, or `continue` to go on all the same.
            settings: How often things are written, and what to keep.
            clock: Where the time comes from.
            disk: Where bytes go.
        """
        kept = KeptRun(
            framework="lightning",
            output_dir=Path(output_dir),
            on_config_change=on_config_change,
            settings=settings,
            clock=clock,
            disk=disk,
        )
        self._run = _Run(kept, dict(config or {}), total_steps)
        self.checkpoint_io = CrashproofCheckpointIO(self._run)
        """For `Trainer(plugins=[…])`: checkpoints that are there whole or not at all."""
        self.callback = CrashproofCallback(self._run, self.checkpoint_io)
        """For `Trainer(callbacks=[…])`: every step's loss, evaluations, random states, the run's end."""
        self.logger = CrashproofLogger(self._run)
        """For `Trainer(logger=…)`: hyperparameters, and metrics that are logged once an epoch."""

    @property
    def output_dir(self) -> Path:
        """The run's folder."""
        return self._run.kept.output_dir

    def newest_checkpoint(self) -> str | None:
        """The newest whole checkpoint for `trainer.fit(ckpt_path=…)`, or None for a fresh start.

        Raises:
            NoUsableCheckpoint: some were recorded and none can be used.
            OtherRun: the folder holds the run of another program.
            RunInUse: another live process writes the run, and a damaged checkpoint is to be set aside.
        """
        rank = cast(int, getattr(rank_zero_only, "rank", 0) or 0)
        found = self._run.kept.newest_checkpoint(is_main=rank == 0)
        return None if found is None else found.checkpoint_path


class _Run:
    """What the three parts share."""

    def __init__(self, kept: KeptRun, config: dict[str, Any], total_steps: int | None) -> None:
        self.kept = kept
        self.config = config
        self.total_steps = total_steps
        self.tracker: ProgressTracker | None = None
        """The run's writer while the trainer fits, on the main process."""
        self.trainer: Trainer | None = None
        """Known once the callback was set up."""
        self.samples = 0
        """Consumed by all processes since the beginning of the run."""
        self.names_of_steps: set[str] = set()
        """What was kept as a component of a step's loss."""
        self.waiting: dict[str, Any] = {}
        """What others have logged for the step that is under way."""
        self.is_epoch_over = False

    def require_trainer(self, part: str) -> Trainer:
        if self.trainer is None:
            raise ConfigError(
                f"hold.{part} is used without hold.callback.", hint="Pass Trainer(callbacks=[hold.callback], …)."
            )
        return self.trainer


class _Preempted(SIGTERMException):
    """Leaves `trainer.fit`, and the program with the exit code for "start me again"."""

    def __init__(self) -> None:
        super().__init__(EXIT_PREEMPTED)


class CrashproofCallback(Callback):
    """Reports every optimizer step; made by `Crashproof`.

    A request to stop (SIGTERM, SIGUSR1, Ctrl-C) lets the optimizer step end, saves `checkpoint_<step>.ckpt` and
    leaves `trainer.fit` by `SystemExit(75)`. Where SIGUSR1 has a handler, as with Lightning's own requeueing on
    SLURM, the signals are left to whoever listens, and the run stops at the first step after Lightning's SIGTERM.
    """

    def __init__(self, run: _Run, checkpoint_io: CrashproofCheckpointIO) -> None:
        self._run = run
        self._checkpoint_io = checkpoint_io
        self._interrupts: Interrupts | None = None
        self._restored: dict[str, Any] | None = None
        self._last_step = 0
        self._learning_rate: Any = 0.0
        self._losses: list[Any] = []
        self._has_told_of_no_loss = False
        self._seen: dict[str, Any] = {}
        self._state_in_training: dict[str, Any] | None = None
        self._validation_began = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look whether the parts are together."""
        if stage != "fit":
            return
        if trainer.strategy.checkpoint_io is not self._checkpoint_io:
            raise ConfigError(
                "hold.callback is used without hold.checkpoint_io, so no checkpoint would be known to be whole.",
                hint="Pass Trainer(plugins=[hold.checkpoint_io], …).",
            )
        self._run.trainer = trainer
        self._restored = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning leaves out: random states of each process, and the position in the data."""
        states: list[Any] = [capture_random_state()]
        if trainer.world_size > 1:
            own, states = states[0], [None] * trainer.world_size
            torch.distributed.all_gather_object(states, own)
        loader = trainer.train_dataloader
        checkpoint[_OURS] = {
            "samples": self._run.samples,
            "random_states": states,
            "is_epoch_end": trainer.is_last_batch,
            "loader": loader.state_dict() if isinstance(loader, ResumableLoader) else None,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember it until training begins: what comes in between draws random numbers."""
        if trainer.state.fn != "fit":
            return
        self._restored = checkpoint.get(_OURS)
        if self._restored is None:
            log.warning("The checkpoint was saved without crashproof: random states and the data begin anew.")
        else:
            self._run.samples = self._restored["samples"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """At the beginning of an epoch the data loader draws a seed first, as it would have without a break."""
        if self._restored is not None and self._restored["is_epoch_end"]:
            self._restore_random_state(trainer, self._restored)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the run."""
        step = self._last_step = trainer.global_step
        self._losses = []
        self._seen = dict(trainer.logged_metrics)
        self._run.is_epoch_over, self._run.waiting = False, {}
        if trainer.is_global_zero:
            total_steps = self._total_steps(trainer)
            self._run.kept.require_resumed(read_run(self._run.kept.folder).session, step)
            self._run.tracker = self._run.kept.opened(self._run.config, total_steps)
        if signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
            self._interrupts = Interrupts().__enter__()
        loader = trainer.train_dataloader
        if (
            self._restored is not None
            and isinstance(loader, ResumableLoader)
            and self._restored["loader"] is not None
        ):
            # Lightning loads it too, but not where configure_optimizers has asked for the number of steps.
            loader.load_state_dict(self._restored["loader"])
            # Lightning may still look at the validation data first, which draws a number.
            loader.before_first_batch = partial(self._restore_random_state, trainer, self._restored)
        elif self._restored is not None and not self._restored["is_epoch_end"]:
            self._restore_random_state(trainer, self._restored)
        self._state_in_training = capture_random_state()
        self._restored = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """The learning rate as it is used: the schedule moves on before the batch ends."""
        rate = optimizer.param_groups[0]["lr"]
        self._learning_rate = rate.clone() if isinstance(rate, Tensor) else rate

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the step, once all its batches are through; then stop where that was asked."""
        self._losses.append(outputs.get("loss") if isinstance(outputs, Mapping) else outputs)
        self._run.samples += extract_batch_size(batch) * trainer.world_size
        if trainer.global_step != self._last_step:
            self._last_step = trainer.global_step
            self._keep_step(trainer)
            if self._is_asked_to_stop(trainer):
                trainer.save_checkpoint(self._run.kept.folder.root / f"checkpoint_{trainer.global_step}.ckpt")
                raise _Preempted
        self._state_in_training = capture_random_state()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember when, and what is known."""
        self._validation_began = self._run.kept.clock.steady()
        self._seen = dict(trainer.callback_metrics)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what was measured, and give training its random numbers back.

        After a resume Lightning does not repeat a validation that the checkpoint came before. So whether it takes
        place must not change what training draws.
        """
        if trainer.sanity_checking:
            return
        if self._state_in_training is not None and trainer.state.fn == "fit":
            restore_random_state(self._state_in_training)
        if self._run.tracker is not None:
            results = _fresh(trainer.callback_metrics, self._seen)
            seconds = self._run.kept.clock.steady() - self._validation_began
            self._run.tracker.record_evaluation(trainer.global_step, results, seconds)
        self._seen = dict(trainer.logged_metrics)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on, what is logged belongs to a step."""
        self._run.is_epoch_over = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on, what is logged belongs to the epoch."""
        self._run.is_epoch_over = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._stop_listening()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the attempt; the last checkpoints were saved before."""
        self._close("completed", None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the attempt as what it was."""
        self._stop_listening()
        if isinstance(exception, SIGTERMException):
            self._close("preempted", None)
        else:
            self._close("raised", exception)

    def _keep_step(self, trainer: Trainer) -> None:
        loss = self._mean_loss(trainer)
        if self._run.tracker is None:
            return
        logged = dict(trainer.logged_metrics)
        components = _fresh(logged, self._seen)
        self._seen = logged
        components, self._run.waiting = {**self._run.waiting, **components}, {}
        self._run.names_of_steps |= logged.keys() & components.keys()
        self._run.tracker.update_metrics(
            trainer.global_step, loss, components, self._learning_rate, self._run.samples, 0
        )

    def _mean_loss(self, trainer: Trainer) -> Any:
        """Over the batches of the step, on its device; NaN where `training_step` gave none."""
        losses, self._losses = [each for each in self._losses if each is not None], []
        if not losses:
            if not self._has_told_of_no_loss:
                log.warning(
                    "Step %d has no loss: training_step returned none. It is kept as NaN.", trainer.global_step
                )
                self._has_told_of_no_loss = True
            return math.nan
        if len(losses) == 1 and trainer.accumulate_grad_batches == 1:
            return losses[0]
        # Lightning has divided each by the number of batches that a whole step has.
        return torch.stack(losses).sum() * (trainer.accumulate_grad_batches / len(losses))

    def _total_steps(self, trainer: Trainer) -> int:
        if self._run.total_steps is not None:
            return self._run.total_steps
        estimate = trainer.estimated_stepping_batches
        if math.isinf(estimate):
            raise ConfigError(
                "How long the trainer will train is not known: it has neither max_steps nor a length of the data.",
                hint="Pass Trainer(max_steps=…), or Crashproof(…, total_steps=…).",
            )
        return int(estimate)

    @staticmethod
    def _restore_random_state(trainer: Trainer, restored: Mapping[str, Any]) -> None:
        states = restored["random_states"]
        if len(states) == trainer.world_size:
            restore_random_state(states[trainer.global_rank])
        else:
            log.warning(
                "The checkpoint is of %d process(es), now there are %d: random states begin anew.",
                len(states),
                trainer.world_size,
            )

    def _is_asked_to_stop(self, trainer: Trainer) -> bool:
        asked = trainer.received_sigterm or (self._interrupts is not None and self._interrupts.is_requested)
        return bool(trainer.strategy.reduce_boolean_decision(asked, all=False)) if trainer.world_size > 1 else asked

    def _stop_listening(self) -> None:
        if self._interrupts is not None:
            self._interrupts.__exit__(None, None, None)
            self._interrupts = None

    def _close(self, how: str, error: BaseException | None) -> None:
        if self._run.tracker is not None:
            tracker, self._run.tracker = self._run.tracker, None
            tracker.close(how, error)


def _fresh(logged: Mapping[str, Any], seen: Mapping[str, Any]) -> dict[str, Any]:
    """What was logged since: Lightning repeats the rest, in the memory that it had."""
    return {name: value for name, value in logged.items() if name not in seen or not _is_same(seen[name], value)}


def _is_same(seen: Any, value: Any) -> bool:
    # What was seen is still held, so nothing new can lie in its place.
    is_tensor = isinstance(seen, Tensor) and isinstance(value, Tensor)
    return seen.data_ptr() == value.data_ptr() if is_tensor else seen is value


class CrashproofLogger(Logger):
    """Takes hyperparameters for the run's config, and metrics that nobody else has; made by `Crashproof`.

    What is logged in `training_step` stands in every step's line already, and what validation measured stands in
    its evaluation. Of what is left, means over an epoch are kept with the evaluation of its last step; what other
    callbacks log in mid-epoch, such as `LearningRateMonitor`, are components of the next step that ends.
    """

    def __init__(self, run: _Run) -> None:
        super().__init__()
        self._run = run

    @property
    def name(self) -> str:
        """None: a run is named by its folder, and `ModelCheckpoint` saves below it."""
        return ""

    @property
    def version(self) -> str:
        """None: the attempts of a run are no versions of it."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self._run.kept.output_dir)

    @property
    def experiment(self) -> ProgressTracker | None:
        """The run's writer while the trainer fits, on the main process."""
        return self._run.tracker

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Add them to the config, before training begins."""
        values = vars(params) if isinstance(params, Namespace) else dict(params)
        if self._run.tracker is not None:
            log.warning(
                "Hyperparameters logged in mid-training are not kept: the run's config is what it began with."
            )
            return
        self._run.config.update(values)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Keep what stands nowhere else."""
        trainer = self._run.require_trainer("logger")
        if self._run.tracker is None or trainer.validating:
            return
        rest = {name: value for name, value in metrics.items() if name not in self._run.names_of_steps | {"epoch"}}
        if rest and self._run.is_epoch_over:
            self._run.tracker.record_evaluation(trainer.global_step, rest)
        else:
            self._run.waiting |= rest


class CrashproofCheckpointIO(CheckpointIO):
    """Writes checkpoints whole or not at all, and reads them as data; made by `Crashproof`.

    One that training can go on from is recorded as soon as it is durable. `ModelCheckpoint` says which to remove;
    each goes once a newer one was read back whole.
    """

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._unwanted: list[Path] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Publish it once it is durable.

        Raises:
            CheckpointMismatch: it holds more than data, so it could not be loaded again.
            DiskFull, StorageUnwritable: a file that had this name is as it was.
        """
        self._run.require_trainer("checkpoint_io")
        if storage_options is not None or is_remote(str(path)):
            raise ConfigError(
                f"{path} is not on a file system, and only there a checkpoint can be kept whole.",
                hint="Save into the run's folder: leave ModelCheckpoint's dirpath out, or name a folder.",
            )
        path = Path(path)
        kept = self._run.kept
        kept.disk.make_folders(path.parent)
        written = save_checkpoint(path, checkpoint, disk=kept.disk)
        self._require_data(path)
        if self._run.tracker is None or "optimizer_states" not in checkpoint:
            log.info("%s is written, and not recorded: no training goes on from it.", path)
            return
        self._run.tracker.record_checkpoint(checkpoint["global_step"], path, self._run.samples, written=written)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read it on the CPU, after a look at every byte; always as data, whatever is asked for.

        Raises:
            CheckpointDamaged: it is missing, torn, altered, or holds more than data.
        """
        return load_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove it, and those that had to stay before; one that has to stay now goes with a later one."""
        if self._run.tracker is None:
            log.info("%s stays: checkpoints are removed only while their run is open.", path)
            return
        self._unwanted.append(Path(path))
        self._unwanted = [each for each in self._unwanted if not self._is_gone(each, self._run.tracker)]

    def _is_gone(self, path: Path, tracker: ProgressTracker) -> bool:
        folder = self._run.kept.folder
        session = tracker.session
        known = {each.checkpoint_path for each in [*session.checkpoints.values(), *session.checkpoints_beside]}
        if folder.recorded_path(path) in known:
            return tracker.remove_checkpoint(path)
        if path.is_file():
            self._run.kept.disk.remove_file(path)
        return True

    def _require_data(self, path: Path) -> None:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if found:
            raise CheckpointMismatch(path, reason=f"it holds {', '.join(sorted(found))}, which is more than data")

"""Put the parts of a run together."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from crashproof.alerts.settings import AlertSettings
from crashproof.digests import hexadecimal_of
from crashproof.distillation.display import show_progress
from crashproof.distillation.models.layers import prepare_layers
from crashproof.distillation.recipes.task import AnyTask
from crashproof.distillation.settings.api_teacher import ApiTeacherFields
from crashproof.distillation.settings.data import DataConfig
from crashproof.distillation.settings.run import RunConfig
from crashproof.distillation.settings.train import TrainConfig
from crashproof.distillation.teachers.api import identifying_fields
from crashproof.distillation.training.agreement.checkpoint import require_same_checkpoint
from crashproof.distillation.training.agreement.inputs import InputDigests
from crashproof.distillation.training.bad_steps.guard import BadStepGuard, GoBack, StepGuard
from crashproof.distillation.training.batches import StepBatches
from crashproof.distillation.training.loop import TrainingLoop, new_state
from crashproof.distillation.training.preparation import Prepared
from crashproof.distillation.training.rank_times import RankComparison, choose_timer
from crashproof.distillation.training.saving import CheckpointSaver
from crashproof.distillation.training.strategy import Strategy, choose_strategy
from crashproof.distillation.training.student_folder import write_sharded_student, write_student
from crashproof.distillation.training.training_state import TrainingState
from crashproof.formatting import ago
from crashproof.pytorch.coordination.agreement import all_or_none
from crashproof.pytorch.device import ComputeDevice
from crashproof.pytorch.interrupts import Interrupts
from crashproof.pytorch.random_state import seed_everything
from crashproof.pytorch.ranks import Ranks
from crashproof.pytorch.sampler import DataOrder
from crashproof.pytorch.step_timer import StepTimer
from crashproof.records.bad_steps import DataWindow
from crashproof.rules.bad_steps.finding import BadStepFinding
from crashproof.rules.bad_steps.left_out import windows_of
from crashproof.tracking.bad_steps.verdict import bad_step_error
from crashproof.tracking.context import training_progress_context
from crashproof.tracking.settings import TrackerSettings

__all__ = ["TrainingRun"]

log = logging.getLogger("crashproof")

_AHEAD_STEPS = 2
_HOW_IT_RUNS = ("strategy", "limit_seconds", "on_bad_step", "max_bad_steps")
"""Of `train`: a run may continue with another number of processes, or another strategy; and whoever sees a bad step
may choose only then what is to be done about it."""
_DATA_PATHS = ("path", "eval_path", "split", "eval_split")
_DATA_RULES = ("learn_reasoning", "learn_refusals", "preferences", "on_too_long")
"""Of `data`: at their defaults they are left out, as before there were any."""


class TrainingRun:
    """One process's part of a training run, from its models to the saved student."""

    def __init__(
        self,
        task: AnyTask,
        config: RunConfig,
        prepared: Prepared,
        digests: InputDigests,
        output_dir: Path,
        *,
        device: ComputeDevice,
        ranks: Ranks,
        interrupts: Interrupts,
        resume: str,
    ) -> None:
        """`resume` is `auto`, `never`, or the path of a checkpoint.

        Raises:
            CheckpointDamaged, CheckpointMismatch: the requested one cannot be used; nothing was changed.
        """
        self._task = task
        self._config = config
        self._prepared = prepared
        self._device = device
        self._ranks = ranks
        self._interrupts = interrupts
        self._output_dir = output_dir
        self._strategy, self._state = self._build_state()
        self._timer: StepTimer | None = None
        self._chosen = None if resume in ("auto", "never") else Path(resume)
        if self._chosen is not None:
            with all_or_none(ranks, f"looking at {self._chosen.name}"):
                self._state.require_fit(self._chosen)
        self.progress = training_progress_context(
            config=_identity(task.name, config, prepared, digests) if ranks.is_main else {},
            output_dir=self._output_dir,
            total_steps=config.train.steps,
            is_main_process=ranks.is_main,
            ignore_config_keys=config.progress.ignore_config_keys,
            fresh=resume == "never",
            settings=TrackerSettings(
                keep=config.progress.keep.rule(),
                alerts=config.alert_settings(os.environ) if ranks.is_main else AlertSettings(),
            ),
        )

    def train(self) -> bool:
        """Open the run and train the remaining steps; return whether it is complete."""
        # Closed in reverse order: a running save is waited for, and recorded, before the run ends.
        with ExitStack() as stack:
            with all_or_none(self._ranks, "opening the run"):
                stack.enter_context(self.progress)
            self._set_horizon()
            self._resume()
            step, total_steps = self._state.counters.step, self._config.train.steps
            if step >= total_steps:
                log.info("Nothing is left to train: %s of %s steps are done.", f"{step:,}", f"{total_steps:,}")
                if not self._lacks_evaluation(step):
                    return True
            is_complete = self._train_on()
            if not is_complete:
                self._end_preempted()
        return is_complete

    def save_student(self) -> None:
        """Write the student as a `transformers` folder, after the run is closed."""
        step, ranks, prepared = self._state.counters.step, self._ranks, self._prepared
        folder = self._output_dir / f"student_{step}"
        origin: dict[str, str | int] = {"step": step}
        if ranks.is_main:
            origin |= self._origin()
        if self._strategy.works_in_lockstep:
            with ranks.collective("gathering the student"):
                write_sharded_student(prepared, self._config, ranks, folder, origin=origin)
        elif ranks.is_main:
            write_student(prepared, folder, origin=origin)
        log.info("Complete: %s steps. The student is in %s.", f"{step:,}", folder)

    def _origin(self) -> dict[str, str | int]:
        """What a saved student was made from, beside its step."""
        origin: dict[str, str | int] = {"session_id": self.progress.get_progress_summary()["session_id"]}
        dtype = self._prepared.saved_dtype
        if dtype != torch.float32:
            origin["dtype"] = str(dtype).removeprefix("torch.")
            log.info("The student is saved in %s (student.save_dtype); checkpoints hold float32.", origin["dtype"])
        return origin

    def _build_state(self) -> tuple[Strategy, TrainingState]:
        recipe, train, device = self._prepared.recipe, self._config.train, self._device.device
        if self._prepared.weights is None:
            recipe.to(device)
            if self._prepared.teacher is not None:
                self._prepared.teacher.to(device)  # type: ignore[arg-type]  # transformers leaves it so.
        prepare_layers(recipe.student, train, device)
        with self._ranks.collective("sharing the model"):
            strategy = choose_strategy(recipe, train.strategy, self._ranks, device, self._prepared.weights)
        # All processes made the same models; from here on each draws its own numbers.
        seed_everything(train.seed + self._ranks.rank)
        return strategy, new_state(recipe, train, self._device, self._ranks)

    def _set_horizon(self) -> None:
        """By default the learning rate ends where the run's first start was to end."""
        if self._config.train.schedule_steps is None:
            tracker = self.progress.tracker
            at_start = None if tracker is None else tracker.session.total_steps_at_start
            horizon = self._ranks.broadcast(at_start, "sharing the learning-rate horizon")
            self._state.counters.schedule_steps = horizon or self._config.train.steps

    def _train_on(self) -> bool:
        """Train the remaining steps, and again those behind a checkpoint that training goes back to."""
        while True:
            with (
                ExitStack() as stack,
                show_progress(
                    self._task.name,
                    total_steps=self._config.train.steps,
                    first_step=self._state.counters.step,
                    is_shown=self._ranks.is_main,
                ) as display,
            ):
                try:
                    return self._build_loop(stack).run(display)
                except GoBack as back:
                    finding = back.finding
            self._go_back(finding)

    def _go_back(self, finding: BadStepFinding) -> None:
        """Restore the newest healthy checkpoint before a bad step.

        Raises:
            BadStep: There is none.
        """
        tracker = self.progress.tracker
        newest = None
        with all_or_none(self._ranks, "choosing where to go back to"):
            newest = tracker.get_recovery_checkpoint(before_step=finding.step) if tracker is not None else None
        chosen = self._ranks.broadcast(newest, "sharing where to go back to")
        if chosen is None:
            raise bad_step_error(finding, None)
        path = Path(chosen.checkpoint_path)
        require_same_checkpoint(path, self._ranks)
        self._state.restore(path)
        log.info("Going on from step %s (%s).", f"{self._state.counters.step:,}", path.name)

    def _end_preempted(self) -> None:
        by = self._interrupts.received.name if self._interrupts.received else "request"
        log.info("Stopped at step %s by %s. Start the same command again.", f"{self._state.counters.step:,}", by)
        self.progress.end_as("preempted")

    def _lacks_evaluation(self, step: int) -> bool:
        """Whether the run died between its last checkpoint and the evaluation at its end."""
        if self._config.progress.eval_every is None or self._prepared.evaluator is None:
            return False
        tracker = self.progress.tracker
        is_done = tracker is not None and any(each.step == step for each in tracker.session.evaluations)
        return not self._ranks.broadcast(is_done, "looking for the last evaluation")

    def _build_loop(self, stack: ExitStack) -> TrainingLoop:
        config, prepared = self._config, self._prepared
        first_sample = self._state.counters.samples
        left_out = self._left_out()
        upcoming = _upcoming_samples(len(prepared.data), config.train, first_sample, left_out)
        stack.enter_context(prepared.data.attach(self.progress.tracker, upcoming, self._ranks))
        batches = StepBatches(
            prepared.data,
            config.train,
            self._ranks,
            first_sample=first_sample,
            ahead_steps=_AHEAD_STEPS if prepared.data.is_prefetchable else 0,
            left_out=left_out,
        )
        stack.callback(batches.close)
        saver = CheckpointSaver(
            self._state,
            self.progress,
            self._output_dir,
            self._ranks,
            settings=config.progress,
            is_stop_requested=lambda: self._interrupts.is_requested,
        )
        stack.callback(saver.close)
        if self._state.counters.step < config.train.steps:
            saver.require_room(num_saves=_saves_left(config, self._state.counters.step))
        if self._timer is None:
            # Its hooks stay where they are when training goes back.
            self._timer = choose_timer(self._strategy, self._device.device, self._ranks)
        return TrainingLoop(
            recipe=prepared.recipe,
            strategy=self._strategy,
            batches=batches,
            state=self._state,
            saver=saver,
            evaluator=prepared.evaluator,
            train=config.train,
            progress=config.progress,
            device=self._device,
            context=self.progress,
            interrupts=self._interrupts,
            timer=self._timer,
            comparison=RankComparison(self._ranks, self._timer, report=self.progress.record_rank_times),
            guard=self._guard(),
        )

    def _guard(self) -> StepGuard:
        policy, most = self._config.train.on_bad_step, self._config.train.max_bad_steps
        if policy is None:
            # Those of the restored checkpoint would grow old in the next ones.
            self._state.healthy_losses = None
            return StepGuard()
        return BadStepGuard(policy, most, state=self._state, ranks=self._ranks, context=self.progress)

    def _left_out(self) -> list[DataWindow]:
        """The samples that the run leaves out, as its main process has them on record."""
        tracker = self.progress.tracker
        own = [] if tracker is None else tracker.session.data_left_out
        return self._ranks.broadcast(own, "sharing the samples that are left out")

    def _resume(self) -> None:
        """Restore the requested checkpoint, or the newest intact one that the main process finds."""
        if self._chosen is not None:
            require_same_checkpoint(self._chosen, self._ranks)
            self._state.restore(self._chosen)
            log.info("Resuming at step %s (%s, as requested).", f"{self._state.counters.step:,}", self._chosen)
            return
        tracker = self.progress.tracker
        newest = tracker.get_recovery_checkpoint() if tracker is not None else None
        chosen = None if newest is None else newest.checkpoint_path
        chosen = self._ranks.broadcast(chosen, "choosing where to resume")
        if chosen is None:
            return
        path = Path(chosen)
        require_same_checkpoint(path, self._ranks)
        self._state.restore(path)
        if newest is not None:
            when = ago(newest.created_at, time.time())
            log.info("Resuming at step %s (%s, %s).", f"{newest.checkpoint_step:,}", path.name, when)


def _identity(recipe: str, config: RunConfig, prepared: Prepared, digests: InputDigests) -> dict[str, object]:
    """The run's identity for its session: the config, and the digest of its data."""
    content = config.model_dump(
        mode="json",
        exclude={
            "teacher": set(ApiTeacherFields.model_fields),
            "train": set(_HOW_IT_RUNS),
            "student": {"save_dtype"},
            # Addresses and commands contain secrets.
            "progress": {"alerts"},
        },
    )
    if config.teacher.kind == "api":
        content["teacher"] = identifying_fields(config.teacher)
    defaults = {name for name in _DATA_RULES if getattr(config.data, name) == DataConfig.model_fields[name].default}
    left_out = {*_DATA_PATHS, *defaults}
    # The content of data and models counts, not their paths.
    content["data"] = {
        **{name: value for name, value in content["data"].items() if name not in left_out},
        "sha256": prepared.data_sha256,
    }
    for section, digest in (("teacher", digests.teacher), ("student", digests.student)):
        if digest is not None:
            content[section]["path"] = hexadecimal_of(digest.digest)
    return {"recipe": recipe, **content}


def _saves_left(config: RunConfig, step: int) -> int | None:
    """The checkpoints until the last step; None if their interval is chosen on the way."""
    interval = config.progress.checkpoint_interval
    return None if isinstance(interval, str) else -(-(config.train.steps - step) // interval)


def _upcoming_samples(
    num_samples: int, train: TrainConfig, first: int, left_out: Sequence[DataWindow]
) -> Iterator[int]:
    """The samples that the rest of the run takes, in their order."""
    order = DataOrder(num_samples=num_samples, seed=train.seed)
    total = train.steps * train.batch_size * train.gradient_accumulation
    for window in windows_of(first, total - first, left_out):
        for position in range(window.first, window.end):
            yield from order.indices(position, 1)

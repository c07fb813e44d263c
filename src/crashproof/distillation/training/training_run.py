"""A training run: its parts, and how they come together."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from crashproof.alerts.settings import AlertSettings
from crashproof.checkpoints.digest import digest_of
from crashproof.distillation.data.captured_folder import CapturedFolder
from crashproof.distillation.display import show_progress
from crashproof.distillation.models.causal_lm import save_model
from crashproof.distillation.models.layers import prepare_layers
from crashproof.distillation.recipes.task import AnyTask
from crashproof.distillation.settings.api_teacher import ApiTeacherFields
from crashproof.distillation.settings.run import RunConfig
from crashproof.distillation.settings.train import TrainConfig
from crashproof.distillation.teachers.api import identifying_fields
from crashproof.distillation.training.batches import StepBatches
from crashproof.distillation.training.loop import TrainingLoop, new_optimizer
from crashproof.distillation.training.preparation import Prepared, new_student
from crashproof.distillation.training.saving import CheckpointSaver
from crashproof.distillation.training.strategy import Strategy, choose_strategy, gather_weights
from crashproof.distillation.training.training_state import TrainingState
from crashproof.formatting import ago
from crashproof.pytorch.device import ComputeDevice
from crashproof.pytorch.interrupts import Interrupts
from crashproof.pytorch.random_state import seed_everything
from crashproof.pytorch.ranks import Ranks
from crashproof.pytorch.sampler import DataOrder
from crashproof.tracking.context import training_progress_context
from crashproof.tracking.settings import TrackerSettings

__all__ = ["TrainingRun", "alert_settings"]

log = logging.getLogger("crashproof")

_AHEAD_STEPS = 2
_HOW_NOT_WHAT = ("strategy", "limit_seconds")
"""Of `train`: the same run may go on with another number of processes, shared otherwise."""
_WHERE_DATA_LIE = ("path", "eval_path")


class TrainingRun:
    """One process's part of a training run, from its models to the student that comes out."""

    def __init__(
        self,
        task: AnyTask,
        config: RunConfig,
        prepared: Prepared,
        output_dir: Path,
        *,
        device: ComputeDevice,
        ranks: Ranks,
        interrupts: Interrupts,
        resume: str,
    ) -> None:
        """`resume` is `auto`, `never`, or the path of a checkpoint.

        Raises:
            CheckpointDamaged, CheckpointMismatch: the one that was asked for; nothing was touched.
        """
        self._task = task
        self._config = config
        self._prepared = prepared
        self._device = device
        self._ranks = ranks
        self._interrupts = interrupts
        self._output_dir = output_dir
        self._stack = ExitStack()
        self._strategy, self._state = self._built()
        self._chosen = None if resume in ("auto", "never") else Path(resume)
        if self._chosen is not None:
            self._state.require_fit(self._chosen)
        self.progress = training_progress_context(
            config=_identity(task.name, config, prepared) if ranks.is_main else {},
            output_dir=self._output_dir,
            total_steps=config.train.steps,
            is_main_process=ranks.is_main,
            fresh=resume == "never",
            settings=TrackerSettings(
                keep=config.progress.keep.rule(),
                alerts=alert_settings(config) if ranks.is_main else AlertSettings(),
            ),
        )

    def __enter__(self) -> Self:
        self._stack.enter_context(self.progress)
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # What was opened later is closed first: a save under way is waited for, and recorded.
        self._stack.__exit__(exception_type, exception, traceback)

    def train(self) -> bool:
        """Train what is left; says whether the run is complete."""
        state, config, progress = self._state, self._config, self.progress
        tracker = progress.tracker
        if config.train.schedule_steps is None:
            at_start = None if tracker is None else tracker.session.total_steps_at_start
            told = self._ranks.from_main(at_start, "telling the horizon of the learning rate")
            state.counters.schedule_steps = told or config.train.steps
        self._resume()
        counters, total_steps = state.counters, config.train.steps
        if counters.step >= total_steps:
            log.info("Nothing is left to train: %s of %s steps are done.", f"{counters.step:,}", f"{total_steps:,}")
            return True
        loop = self._loop()
        with show_progress(
            self._task.name, total_steps=total_steps, first_step=counters.step, is_shown=self._ranks.is_main
        ) as shown:
            is_complete = loop.run(shown)
        if not is_complete:
            by = self._interrupts.received.name if self._interrupts.received else "request"
            log.info("Stopped at step %s by %s. Start the same command again.", f"{counters.step:,}", by)
            progress.end_as("preempted")
        return is_complete

    def save_student(self) -> None:
        """Write the student as a `transformers` folder, once the run was left."""
        step = self._state.counters.step
        folder = self._output_dir / f"student_{step}"
        student = self._prepared.recipe.student
        weights = gather_weights(student, self._ranks)
        if self._ranks.is_main:
            if weights is not None:
                student = new_student(self._config.student, self._prepared.tokenizer, self._config.data.max_length)
                student.load_state_dict(weights, strict=False)
            session_id = self.progress.get_progress_summary()["session_id"]
            origin: dict[str, str | int] = {"session_id": session_id, "step": step}
            save_model(student, self._prepared.tokenizer, folder, origin=origin)
            log.info("Complete: %s steps. The student is in %s.", f"{step:,}", folder)

    def _built(self) -> tuple[Strategy, TrainingState]:
        recipe, teacher, train = self._prepared.recipe, self._prepared.teacher, self._config.train
        recipe.to(self._device.device)
        if teacher is not None:
            teacher.to(self._device.device)  # type: ignore[arg-type]  # transformers leaves it so.
        prepare_layers(recipe.student, train, self._device.device)
        strategy = choose_strategy(recipe, train.strategy, self._ranks, self._device.device)
        # From here on each process draws numbers of its own; the models were made with the same.
        seed_everything(train.seed + self._ranks.rank)
        state = TrainingState(
            module=recipe,
            optimizer=new_optimizer(recipe, train),
            scaler=self._device.grad_scaler(),
            ranks=self._ranks,
            seed=train.seed,
        )
        state.counters.schedule_steps = train.schedule_steps or train.steps
        return strategy, state

    def _loop(self) -> TrainingLoop:
        config, prepared, stack = self._config, self._prepared, self._stack
        first_sample = self._state.counters.samples
        upcoming = _upcoming_samples(len(prepared.data), config.train, first_sample)
        stack.enter_context(prepared.data.attach(self.progress.tracker, upcoming))
        batches = StepBatches(
            prepared.data,
            config.train,
            self._ranks,
            first_sample=first_sample,
            ahead_steps=_AHEAD_STEPS if prepared.data.is_prefetchable else 0,
        )
        stack.callback(batches.close)
        saver = CheckpointSaver(
            self._state,
            self.progress,
            self._output_dir,
            self._ranks,
            in_background=config.progress.saves_behind,
        )
        stack.callback(saver.close)
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
            ranks=self._ranks,
            interrupts=self._interrupts,
        )

    def _resume(self) -> None:
        """Go on from the checkpoint that was asked for, or from the newest whole one, as the main process says."""
        if self._chosen is not None:
            self._state.restore(self._chosen)
            log.info("Resuming at step %s (%s, as asked).", f"{self._state.counters.step:,}", self._chosen)
            return
        tracker = self.progress.tracker
        newest = tracker.get_recovery_checkpoint() if tracker is not None else None
        chosen = None if newest is None else newest.checkpoint_path
        told = self._ranks.from_main(chosen, "choosing where to resume")
        if told is None:
            return
        path = Path(told)
        self._state.restore(path)
        if newest is not None:
            when = ago(newest.created_at, time.time())
            log.info("Resuming at step %s (%s, %s).", f"{newest.checkpoint_step:,}", path.name, when)


def alert_settings(config: RunConfig) -> AlertSettings:
    """Whom a trainer alerts.

    Raises:
        ConfigError: an address is to be read from a variable that is not set.
    """
    budget = config.teacher.budget if config.teacher.kind == "api" else None
    return config.progress.alerts.settings(os.environ, budget=budget)


def _identity(recipe: str, config: RunConfig, prepared: Prepared) -> dict[str, Any]:
    """What the run is, for its session: the config, and the digest of the data that it learns from."""
    content = config.model_dump(
        mode="json",
        exclude={
            "teacher": set(ApiTeacherFields.model_fields),
            "train": set(_HOW_NOT_WHAT),
            # Addresses and commands hold secrets.
            "progress": {"alerts"},
        },
    )
    if config.teacher.kind == "api":
        content["teacher"] = identifying_fields(config.teacher)
    # What data and models say counts, not where they lie.
    content["data"] = {
        **{name: value for name, value in content["data"].items() if name not in _WHERE_DATA_LIE},
        "sha256": prepared.data_sha256,
    }
    for section, path in (("teacher", _teachers_words(config)), ("student", config.student.path)):
        if path is not None:
            content[section]["path"] = digest_of(path).sha256
    return {"recipe": recipe, **content}


def _teachers_words(config: RunConfig) -> Path | None:
    """The folder, or the file, that decides what a teacher says."""
    path = config.teacher.path
    # The manifest holds the digest of each shard; beside it may lie a cache, and what was set aside.
    return CapturedFolder(path).manifest if path is not None and config.teacher.kind == "logits" else path


def _upcoming_samples(num_samples: int, train: TrainConfig, first: int) -> Iterator[int]:
    """The samples that the rest of the run takes, in their order."""
    order = DataOrder(num_samples=num_samples, seed=train.seed)
    for position in range(first, train.steps * train.batch_size * train.gradient_accumulation):
        yield from order.indices(position, 1)

"""Train a student with all processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from crashproof.distillation.display import hide_other_bars
from crashproof.distillation.models.making import WHOLE_MODELS, DeferredModels
from crashproof.distillation.recipes.registry import TASKS
from crashproof.distillation.recipes.task import AnyTask
from crashproof.distillation.settings.run import RunConfig
from crashproof.distillation.start_checks import require_own_folder
from crashproof.distillation.training.agreement.hardware import hardware_of, warn_of_mixed_hardware
from crashproof.distillation.training.agreement.inputs import InputDigests, require_same_inputs
from crashproof.distillation.training.agreement.preparation import require_same_preparation
from crashproof.distillation.training.agreement.start import describe_start
from crashproof.distillation.training.lessons import LessonsSource, read_lessons
from crashproof.distillation.training.preparation import Prepared, prepare
from crashproof.distillation.training.sample_length import with_max_length
from crashproof.distillation.training.strategy import is_sharded
from crashproof.distillation.training.training_run import TrainingRun
from crashproof.distillation.training.training_state import require_checkpoint
from crashproof.errors import ConfigError
from crashproof.pytorch.coordination.agreement import all_or_none
from crashproof.pytorch.coordination.meeting import StartMeeting
from crashproof.pytorch.coordination.shared_folder import require_shared_folder
from crashproof.pytorch.device import ComputeDevice, choose_device, compute_deterministically
from crashproof.pytorch.interrupts import EXIT_PREEMPTED, Interrupts
from crashproof.pytorch.ranks import Ranks, join_ranks

__all__ = ["train"]

log = logging.getLogger("crashproof")


def train(
    recipe: str, load: Callable[[], RunConfig], *, output_dir: Path, resume: str, interrupts: Interrupts
) -> int:
    """Train, and return the exit code; an error of `load` is told to the other processes too.

    Args:
        recipe: The name of the task.
        load: Returns the config, or raises.
        output_dir: The run's folder.
        resume: `auto`, `never`, or a checkpoint's path.
        interrupts: Tells when to stop.

    Raises:
        CrashproofError: This process or another cannot go on.
        StopRequested: A stop was requested before training began.
    """
    hide_other_bars()
    meeting = StartMeeting(interrupts)
    with meeting.reporting_failure():
        config = load()
        compute_deterministically()
        device = choose_device(config.train.device, config.train.precision)
    limit_seconds = config.train.limit_seconds

    def describe() -> dict[str, str]:
        return describe_start(recipe, config, device, resume=resume, environment=os.environ)

    with (
        meeting.agreement(describe, limit_seconds=limit_seconds),
        join_ranks(device_type=device.device.type, limit_seconds=limit_seconds) as ranks,
    ):
        if not ranks.is_main:
            log.setLevel(logging.ERROR)
        return _train_together(
            TASKS[recipe], config, output_dir, resume, device=device, ranks=ranks, interrupts=interrupts
        )


def _train_together(
    task: AnyTask,
    config: RunConfig,
    output_dir: Path,
    resume: str,
    *,
    device: ComputeDevice,
    ranks: Ranks,
    interrupts: Interrupts,
) -> int:
    """Prepare and train, on a process that has joined the others."""
    with all_or_none(ranks, "looking at the config and the models"):
        config = with_max_length(task.complete(config))
        _require_trainable(config, output_dir, resume, ranks)
    # Before anything takes long: who cannot save would find out hours later.
    require_shared_folder(output_dir, ranks, look_seconds=min(10.0, config.train.limit_seconds / 2))
    with all_or_none(ranks, "reading the data"):
        lessons, digests = read_lessons(task, config), InputDigests.read(config)
    require_same_inputs(ranks, config, lessons.source, digests)
    prepared = _prepare(task, config, lessons, output_dir / "cache", ranks, interrupts)
    require_same_preparation(ranks, config, prepared)
    warn_of_mixed_hardware(ranks, config.train, hardware_of(device.device))
    run = TrainingRun(
        task,
        config,
        prepared,
        digests,
        output_dir,
        device=device,
        ranks=ranks,
        interrupts=interrupts,
        resume=resume,
    )
    if not run.train():
        return EXIT_PREEMPTED
    run.save_student()
    return 0


def _require_trainable(config: RunConfig, output_dir: Path, resume: str, ranks: Ranks) -> None:
    """Refuse what cannot be trained, before anything is read or written."""
    if config.train.batch_size % ranks.num_ranks:
        raise ConfigError(
            f"train.batch_size is {config.train.batch_size}, and {ranks.num_ranks} processes cannot share that "
            "evenly.",
            hint="Change train.batch_size or the number of processes.",
        )
    if ranks.is_main:
        config.alert_settings(os.environ)
        require_own_folder(output_dir)
    if resume not in ("auto", "never"):
        require_checkpoint(Path(resume))


def _prepare(
    task: AnyTask, config: RunConfig, lessons: LessonsSource, cache: Path, ranks: Ranks, interrupts: Interrupts
) -> Prepared:
    """Prepare on the main process, which fills the cache, then on the others, which read it."""
    models = DeferredModels() if is_sharded(config.train.strategy, ranks) else WHOLE_MODELS
    prepared = None
    what = "preparing data and models"
    with all_or_none(ranks, what), ranks.main_process_first(what):
        if ranks.is_main:
            prepared = prepare(task, config, lessons, cache=cache, interrupts=interrupts, models=models)
    with all_or_none(ranks, what):
        if prepared is None:
            _require_cache(cache, ranks)
            prepared = prepare(
                task, config, lessons, cache=cache, interrupts=interrupts, fills_cache=False, models=models
            )
    return prepared


def _require_cache(cache: Path, ranks: Ranks) -> None:
    if not cache.is_dir():
        raise ConfigError(
            f"Rank {ranks.rank} does not see {cache}, which rank 0 has written.",
            hint="Let all hosts share the file system of --output-dir.",
        )

"""Run a trainer from the command line."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from crashproof.distillation.display import hide_other_bars
from crashproof.distillation.models.making import WHOLE_MODELS, DeferredModels
from crashproof.distillation.recipes.registry import TASKS
from crashproof.distillation.recipes.task import AnyTask
from crashproof.distillation.settings.load import files_and_overrides, load_config
from crashproof.distillation.settings.run import RunConfig
from crashproof.distillation.training.agreement.hardware import hardware_of, warn_of_mixed_hardware
from crashproof.distillation.training.agreement.inputs import InputDigests, require_same_inputs
from crashproof.distillation.training.agreement.preparation import require_same_preparation
from crashproof.distillation.training.agreement.start import describe_start
from crashproof.distillation.training.lessons import LessonsSource, read_lessons
from crashproof.distillation.training.preparation import Prepared, prepare
from crashproof.distillation.training.sample_length import with_max_length
from crashproof.distillation.training.strategy import is_sharded
from crashproof.distillation.training.training_run import TrainingRun, alert_settings
from crashproof.distillation.training.training_state import require_checkpoint
from crashproof.errors import ConfigError, CrashproofError
from crashproof.pytorch.coordination.agreement import all_or_none
from crashproof.pytorch.coordination.meeting import StartMeeting
from crashproof.pytorch.coordination.shared_folder import require_shared_folder
from crashproof.pytorch.device import ComputeDevice, choose_device, compute_deterministically
from crashproof.pytorch.exit_codes import exit_code_of
from crashproof.pytorch.interrupts import EXIT_PREEMPTED, Interrupts, StopRequested
from crashproof.pytorch.ranks import Ranks, join_ranks
from crashproof.rules.secrets.texts import without_secrets

__all__ = ["main"]

log = logging.getLogger("crashproof")


def main(recipe: str, arguments: Sequence[str] | None = None) -> int:
    """Train, and return the exit code: 0 complete, 2 a reported error, 75 start the same command again.

    An unexpected exception is not caught: it ends the process with its traceback.
    """
    options = _parser(recipe).parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # It logs every request as INFO.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    hide_other_bars()
    # Stop signals are caught until the reason is out: torchrun sends one as soon as another process has ended.
    with Interrupts() as interrupts:
        try:
            return _train(TASKS[recipe], options, interrupts)
        except CrashproofError as error:
            sys.stderr.write(f"{recipe}: {without_secrets(str(error))}\n")
            return exit_code_of(error)
        except StopRequested as error:
            log.info("Stopped before training began. Start the same command again.")
            return exit_code_of(error)


def _parser(recipe: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m training.distill_{recipe}",
        description="Train a student. After a crash or a kill, start the same command again: it resumes exactly.",
        epilog="Exit codes: 0 complete, 2 error, 75 stopped by a signal, a lost rank or an unreachable teacher "
        "(start the same command again).",
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="override single config keys")
    parser.add_argument("--config", nargs="+", type=Path, default=[], metavar="YAML", help="configs; later files win")
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="auto: from the newest intact checkpoint; never: archive the old session, start anew; or a checkpoint",
    )
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps of the whole run (train.steps)")
    parser.add_argument(
        "--eval-every",
        type=int,
        default=None,
        metavar="N",
        help="optimizer steps between evaluations on held-out data (progress.eval_every; see data.held_out)",
    )
    return parser


def _train(task: AnyTask, options: argparse.Namespace, interrupts: Interrupts) -> int:
    meeting = StartMeeting(interrupts)
    with meeting.reporting_failure():
        config = _load_config(task, options)
        compute_deterministically()
        device = choose_device(config.train.device, config.train.precision)
    limit_seconds = config.train.limit_seconds

    def describe() -> dict[str, str]:
        return describe_start(task.name, config, device, resume=options.resume, environment=os.environ)

    with (
        meeting.agreement(describe, limit_seconds=limit_seconds),
        join_ranks(device_type=device.device.type, limit_seconds=limit_seconds) as ranks,
    ):
        if not ranks.is_main:
            log.setLevel(logging.ERROR)
        return _train_together(task, config, options, device=device, ranks=ranks, interrupts=interrupts)


def _train_together(
    task: AnyTask,
    config: RunConfig,
    options: argparse.Namespace,
    *,
    device: ComputeDevice,
    ranks: Ranks,
    interrupts: Interrupts,
) -> int:
    """Prepare and train, on a process that has joined the others."""
    with all_or_none(ranks, "looking at the config and the models"):
        config = with_max_length(task, task.complete(config))
        _require_trainable(config, options, ranks)
    # Before anything takes long: who cannot save would find out hours later.
    require_shared_folder(options.output_dir, ranks, look_seconds=min(10.0, config.train.limit_seconds / 2))
    with all_or_none(ranks, "reading the data"):
        lessons, digests = read_lessons(task, config), InputDigests.read(config)
    require_same_inputs(ranks, config, lessons.source, digests)
    prepared = _prepare(task, config, lessons, options.output_dir / "cache", ranks, interrupts)
    require_same_preparation(ranks, config, prepared)
    warn_of_mixed_hardware(ranks, config.train, hardware_of(device.device))
    run = TrainingRun(
        task,
        config,
        prepared,
        digests,
        options.output_dir,
        device=device,
        ranks=ranks,
        interrupts=interrupts,
        resume=options.resume,
    )
    if not run.train():
        return EXIT_PREEMPTED
    run.save_student()
    return 0


def _load_config(task: AnyTask, options: argparse.Namespace) -> RunConfig:
    files, overrides = files_and_overrides(options.config)
    overrides += options.overrides
    for name, value in (("train.steps", options.steps), ("progress.eval_every", options.eval_every)):
        if value is not None:
            overrides.append(f"{name}={value}")
    config: RunConfig = load_config(task.config, files, overrides)
    if config.progress.eval_every is not None and _evaluates_nothing(config):
        raise ConfigError(
            "progress.eval_every is set, and nothing is held out to evaluate on.",
            hint="Set data.held_out to a share, such as 0.1, data.eval_path to a file, or data.eval_split.",
        )
    return config


def _evaluates_nothing(config: RunConfig) -> bool:
    return config.data.held_out == 0 and config.data.eval_path is None and config.data.eval_split is None


def _require_trainable(config: RunConfig, options: argparse.Namespace, ranks: Ranks) -> None:
    """Refuse what cannot be trained, before anything is read or written."""
    if config.train.batch_size % ranks.num_ranks:
        raise ConfigError(
            f"train.batch_size is {config.train.batch_size}, and {ranks.num_ranks} processes cannot share that "
            "evenly.",
            hint="Change train.batch_size or the number of processes.",
        )
    if ranks.is_main:
        alert_settings(config)
        _refuse_foreign_folder(options.output_dir)
    if options.resume not in ("auto", "never"):
        require_checkpoint(Path(options.resume))


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


def _refuse_foreign_folder(output_dir: Path) -> None:
    """Refuse checkpoints without a run beside them: they are not ours, and would be overwritten."""
    if output_dir.exists() and not output_dir.is_dir():
        raise ConfigError(f"{output_dir} is a file, not a folder.", hint="Pass a folder as --output-dir.")
    if (output_dir / "progress").is_dir() or not output_dir.is_dir():
        return
    found = sorted(output_dir.glob("checkpoint_*"))
    if found:
        raise ConfigError(
            f"{output_dir} holds {found[0].name} of a run that crashproof does not know.",
            hint="Use another --output-dir.",
        )

"""Run a trainer from the command line."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from holdfast.checkpoints import digest_of
from holdfast.context import TrainingProgressContext, training_progress_context
from holdfast.distillation.api_data import ApiData
from holdfast.distillation.api_fields import ApiTeacherFields
from holdfast.distillation.api_teacher import opened_teacher, what_changes_answers
from holdfast.distillation.captured_folder import CapturedFolder
from holdfast.distillation.config import RunConfig, files_and_overrides, load_config
from holdfast.distillation.display import hide_other_bars, shown_progress
from holdfast.distillation.loop import TrainConfig, TrainingLoop, new_optimizer
from holdfast.distillation.models import save_model
from holdfast.distillation.preparation import Prepared, prepare
from holdfast.distillation.training_state import TrainingState
from holdfast.errors import ConfigError, HoldfastError, TeacherUnreachable
from holdfast.pytorch.checkpoint_file import load_checkpoint
from holdfast.pytorch.device import choose_device, compute_deterministically
from holdfast.pytorch.interrupts import EXIT_PREEMPTED, Interrupts, StopRequested
from holdfast.pytorch.random_state import seed_everything
from holdfast.pytorch.sampler import DataOrder
from holdfast.wording import ago

__all__ = ["main"]

log = logging.getLogger("holdfast")


def main(recipe: str, arguments: Sequence[str] | None = None) -> int:
    """Train; returns the exit code: 0 complete, 2 an error in words, 75 start me again.

    Anything unexpected goes on as an exception, with its traceback.
    """
    options = _parser(recipe).parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # It tells of every request at the level of information.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    hide_other_bars()
    try:
        with Interrupts() as interrupts:
            return _train(recipe, options, interrupts)
    except HoldfastError as error:
        sys.stderr.write(f"{recipe}: {error}\n")
        # A teacher that is away may be back; whatever else it is, starting again alone does not help.
        return EXIT_PREEMPTED if isinstance(error, TeacherUnreachable) else 2
    except StopRequested:
        log.info("Stopped before training began. Start the same command again.")
        return EXIT_PREEMPTED


def _parser(recipe: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m training.distill_{recipe}",
        description="Train, keep everything, and go on where it was left: kill it and start the same command again.",
        epilog="Exit codes: 0 complete, 2 an error, 75 stopped by a signal or by a teacher that is away (start the "
        "same command again).",
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="overrides of single config keys")
    parser.add_argument("--config", nargs="+", type=Path, default=[], metavar="YAML", help="later files win")
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="where the run is kept")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="from the newest whole checkpoint; anew, setting the old session aside; or from this checkpoint",
    )
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps of the whole run (train.steps)")
    return parser


def _train(recipe: str, options: argparse.Namespace, interrupts: Interrupts) -> int:
    files, overrides = files_and_overrides(options.config)
    config = load_config(files, overrides + options.overrides, steps=options.steps)
    chosen = _chosen_checkpoint(options.resume)
    _refuse_foreign_folder(options.output_dir)
    compute_deterministically()
    device = choose_device(config.train.device, config.train.precision)
    prepared = prepare(config, cache=options.output_dir / "cache", interrupts=interrupts)
    seed_everything(config.train.seed)
    state = _new_state(prepared, config, device.device)
    if chosen is not None:
        state.require_fit(chosen[1], chosen[0])
    with (
        training_progress_context(
            config=_identity(recipe, config, prepared),
            output_dir=options.output_dir,
            total_steps=config.train.steps,
            fresh=options.resume == "never",
        ) as progress,
        ExitStack() as stack,
    ):
        assert progress.tracker is not None
        if config.train.schedule_steps is None:
            state.counters.schedule_steps = progress.tracker.session.total_steps_at_start
        _resume(progress, state, chosen)
        if isinstance(prepared.data, ApiData):
            teacher = stack.enter_context(opened_teacher(config.teacher, progress.tracker))
            prepared.data.connect(teacher, _coming(len(prepared.data), config.train, state.counters.samples))
        loop = TrainingLoop(
            recipe=prepared.recipe,
            data=prepared.data,
            state=state,
            train=config.train,
            progress=config.progress,
            device=device,
            context=progress,
            output_dir=options.output_dir,
            interrupts=interrupts,
        )
        session_id = progress.get_progress_summary()["session_id"]
        is_complete = _run(loop, recipe)
        if not is_complete:
            progress.end_as("preempted")
            return EXIT_PREEMPTED
    folder = options.output_dir / f"student_{state.counters.step}"
    origin = {"session_id": session_id, "step": state.counters.step}
    save_model(prepared.student, prepared.tokenizer, folder, origin=origin)
    log.info("Complete: %s steps. The student is in %s.", f"{state.counters.step:,}", folder)
    return 0


def _run(loop: TrainingLoop, recipe: str) -> bool:
    """Train what is left; says whether the run is complete."""
    counters, total_steps = loop.state.counters, loop.train.steps
    if counters.step >= total_steps:
        log.info("Nothing is left to train: %s of %s steps are done.", f"{counters.step:,}", f"{total_steps:,}")
        return True
    with shown_progress(recipe, total_steps=total_steps, first_step=counters.step) as shown:
        is_complete = loop.run(shown)
    if not is_complete:
        by = loop.interrupts.received.name if loop.interrupts.received else "request"
        log.info("Stopped at step %s by %s. Start the same command again.", f"{counters.step:,}", by)
    return is_complete


def _chosen_checkpoint(resume: str) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that was asked for by its path, read before anything is touched."""
    if resume in ("auto", "never"):
        return None
    path = Path(resume)
    return path, load_checkpoint(path)


def _refuse_foreign_folder(output_dir: Path) -> None:
    """Checkpoints without a run beside them are somebody else's, and would be written over."""
    if output_dir.exists() and not output_dir.is_dir():
        raise ConfigError(f"{output_dir} is a file, not a folder.", hint="Pass a folder as --output-dir.")
    if (output_dir / "progress").is_dir() or not output_dir.is_dir():
        return
    found = sorted(output_dir.glob("checkpoint_*"))
    if found:
        raise ConfigError(
            f"{output_dir} holds {found[0].name} of a run that holdfast does not know.",
            hint="Use another --output-dir.",
        )


def _new_state(prepared: Prepared, config: RunConfig, device: Any) -> TrainingState:
    modules = prepared.recipe.modules()
    for module in modules.values():
        module.to(device)
    if prepared.teacher is not None:
        prepared.teacher.to(device)
    state = TrainingState(
        modules=modules,
        optimizer=new_optimizer(modules, config.train),
        scaler=choose_device(config.train.device, config.train.precision).grad_scaler(),
    )
    state.counters.schedule_steps = config.train.schedule_steps or config.train.steps
    return state


def _identity(recipe: str, config: RunConfig, prepared: Prepared) -> dict[str, Any]:
    """What the run is, for its session: the config, and the digest of the data that it learns from."""
    content = config.model_dump(mode="json", exclude={"teacher": set(ApiTeacherFields.model_fields)})
    if config.teacher.kind == "api":
        content["teacher"] = what_changes_answers(config.teacher)
    # What data and models say counts, not where they lie.
    content["data"] = {"max_length": config.data.max_length, "sha256": prepared.data_sha256}
    for section, path in (("teacher", _teachers_words(config)), ("student", config.student.path)):
        if path is not None:
            content[section]["path"] = digest_of(path).sha256
    return {"recipe": recipe, **content}


def _teachers_words(config: RunConfig) -> Path | None:
    """The folder, or the file, that decides what a teacher says."""
    path = config.teacher.path
    # The manifest holds the digest of each shard; beside it may lie a cache, and what was set aside.
    return CapturedFolder(path).manifest if path is not None and config.teacher.kind == "logits" else path


def _coming(num_samples: int, train: TrainConfig, first: int) -> Iterator[int]:
    """The samples that are still wanted, in their order."""
    order = DataOrder(num_samples=num_samples, seed=train.seed)
    for position in range(first, train.steps * train.batch_size * train.gradient_accumulation):
        yield from order.indices(position, 1)


def _resume(
    progress: TrainingProgressContext, state: TrainingState, chosen: tuple[Path, dict[str, Any]] | None
) -> None:
    if chosen is not None:
        state.restore(chosen[1], chosen[0])
        log.info("Resuming at step %s (%s, as asked).", f"{state.counters.step:,}", chosen[0])
        return
    assert progress.tracker is not None
    newest = progress.tracker.get_recovery_checkpoint()
    if newest is None:
        return
    path = Path(newest.checkpoint_path)
    state.restore(load_checkpoint(path), path)
    log.info(
        "Resuming at step %s (%s, %s).", f"{newest.checkpoint_step:,}", path.name, ago(newest.created_at, time.time())
    )

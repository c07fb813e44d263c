"""Record a run of the Hugging Face Trainer."""

# ruff: noqa: E402 - a missing extra is reported before anything of it is imported.

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from crashproof.adapters.resume import FrameworkRun, newest_checkpoint, recorded_checkpoints, require_own_run
from crashproof.checkpoints.digest import make_durable
from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.errors import ConfigError, CrashproofError, RunClosed, SavesFailed, StorageError
from crashproof.optional_dependencies import require_modules, require_versions
from crashproof.reading.run_state import read_run
from crashproof.rules.identity import IdentityRules
from crashproof.tracking.bad_steps.verdict import stops_at_bad_steps
from crashproof.tracking.context import TrainingProgressContext
from crashproof.tracking.settings import TrackerSettings
from crashproof.tracking.tracker import ProgressTracker

require_modules("transformers", "accelerate", "torch", "transformers")
require_versions("transformers", {"transformers": "5.20", "accelerate": "1.1"})

from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from crashproof.adapters.trainer_settings import require_usable, with_rule
from crashproof.adapters.trainer_step import TrainerStep, evaluation_results
from crashproof.pytorch.interrupts import EXIT_PREEMPTED, Interrupts
from crashproof.rules.checkpoint_catalog import CheckpointCatalog

__all__ = ["CrashproofCallback"]

log = logging.getLogger("crashproof")

_NAME = re.compile(r"checkpoint-\d+")

_HOW_NOT_WHAT = (
    # Where to write, how to log, where to report.
    *("output_dir", "run_name", "project", "report_to", "disable_tqdm", "logging_", "log_", "hub_", "push_to_hub"),
    *("trackio_", "include_num_input_tokens_seen", "include_for_metrics", "skip_memory_metrics", "debug"),
    # When to save and evaluate, and how to resume.
    *("save_", "eval_", "per_device_eval_batch_size", "prediction_loss_only", "batch_eval_metrics", "do_"),
    *("bf16_full_eval", "fp16_full_eval", "load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    *("resume_from_checkpoint", "restore_callback_states", "ignore_data_skip", "enable_jit_checkpoint"),
    # How long; `max_steps` is known as a length by itself.
    "num_train_epochs",
    # How the same is computed, and on what.
    *("local_rank", "ddp_", "fsdp", "deepspeed", "parallelism_config", "use_cpu", "torch_compile"),
    *("torch_empty_cache_steps", "auto_find_batch_size", "activation_checkpointing", "gradient_checkpointing"),
    *("full_determinism", "use_cache", "use_liger_kernel", "liger_kernel_config"),
    *("dataloader_num_workers", "dataloader_p", "dataloader_multiprocessing_context", "dataloader_in_order"),
)
"""Training arguments, or their prefixes, that do not identify the run."""
_OF_THE_FILE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")
"""Keys of a model's config that describe how it was stored."""


class CrashproofCallback(TrainerCallback):
    """Record every step, checkpoint and evaluation of a Trainer; adds itself to its callbacks.

    `trainer.train(resume_from_checkpoint=hold.newest_checkpoint())` resumes from the newest intact checkpoint, and
    so does `resume_from_checkpoint=True`.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        on_config_change: str = "archive",
        ignore_config_keys: Sequence[str] = (),
        settings: TrackerSettings | None = None,
        on_bad_step: str | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Attach to a trainer; touches no disk yet.

        Args:
            trainer: With an `output_dir` of its own. From here on crashproof applies `save_total_limit`: it deletes
                an old checkpoint only once a newer one has been verified.
            on_config_change: See `ProgressTracker`; the config is that of the model and of the training arguments.
            ignore_config_keys: Further keys of it that do not count, such as `train.optim`; see `ProgressTracker`.
            settings: How often to write, and which checkpoints to keep.
            on_bad_step: `stop` ends training with `BadStep` where the loss of a step is not finite, or a spike; see
                `ProgressTracker.check_step`. Several processes exchange this after each step.
            clock: The source of time.

        Raises:
            ConfigError: the trainer has no `output_dir` of its own, saves in an unsupported way, or has a callback of
                this kind already.
        """
        output_dir = require_usable(trainer)
        if any(isinstance(each, CrashproofCallback) for each in trainer.callback_handler.callbacks):
            raise ConfigError("The Trainer has a CrashproofCallback already.", hint="Add one to each Trainer.")
        self.was_preempted = False
        """Whether training stopped on request, with its newest step in a checkpoint."""
        self._trainer = trainer
        self._clock = clock
        self._on_config_change = on_config_change
        self._ignore_config_keys = ignore_config_keys
        self._config_defaults = _defaults(trainer)
        self._stops_at_bad_steps = stops_at_bad_steps(on_bad_step)
        self._settings = with_rule(settings or TrackerSettings(), trainer)
        self._run = FrameworkRun(
            framework="transformers",
            output_dir=output_dir,
            config=_identity(trainer),
            on_config_change=on_config_change,
            rules=IdentityRules.of(ignore_config_keys, self._config_defaults),
            samples_per_step=trainer.get_total_train_batch_size(trainer.args),
            is_checkpoint=lambda path: _NAME.fullmatch(path.name) is not None,
        )
        self._progress: TrainingProgressContext | None = None
        self._stack = ExitStack()
        self._beside_training = ExitStack()
        """The phase that a supervisor is shown between two steps."""
        self._interrupts = Interrupts()
        self._resumed_from: str | None = None
        self._trial: object = None
        """The trial of a hyperparameter search that is trained."""
        self._step = TrainerStep(trainer)
        self._is_finished = False
        """Whether the checkpoint that training resumed from is at the run's end, or past it."""
        self._evaluated: tuple[int, dict[str, object]] = (-1, {})
        self._idle_since = 0.0
        # Callbacks get the loss only averaged and filtered, and an exception of `train` not at all. These two
        # methods see both, whatever the class of the trainer; the third decides whether there is a next step.
        trainer.training_step = self._wrap_training_step(trainer.training_step)  # type: ignore[method-assign]
        trainer.get_batch_samples = self._wrap_get_batch_samples(trainer.get_batch_samples)  # type: ignore[method-assign]
        trainer.train = self._wrap_train(trainer.train)  # type: ignore[method-assign]
        trainer.add_callback(self)

    @property
    def tracker(self) -> ProgressTracker | None:
        """The run's writer while it trains; None off the main process.

        Raises:
            RunClosed: training has not begun, or is over.
        """
        if self._progress is None:
            raise RunClosed(self._run.output_dir, why="is open only while trainer.train() runs")
        return self._progress.tracker

    @property
    def exit_code(self) -> int:
        """The exit code for the program: 75 if it was stopped on request and should be started again, else 0."""
        return EXIT_PREEMPTED if self.was_preempted else 0

    def newest_checkpoint(self) -> str | None:
        """The newest intact checkpoint, or None for a fresh start; to be called on every process.

        Reads every byte of it. Moves a folder that a kill left torn, or that was altered since, to
        `progress/set_aside/`. Inspects and adopts checkpoints that were saved without crashproof.

        Raises:
            NoUsableCheckpoint: there were some, and none can be used.
            ConfigChanged: the config differs and `on_config_change` is `error`.
            OtherRun: the output folder holds the run of another program.
            RunInUse: another live process writes the run.
        """
        if self._progress is not None:
            raise ConfigError(
                "newest_checkpoint() was called while the run is training.",
                hint="Call it before trainer.train().",
            )
        if self._trainer.args.world_size == 1:
            return self._find_newest()
        # An error on the main process must end the others too, which would wait forever.
        answer: list[str | None] = [None, None]
        failure: Exception | None = None
        if self._trainer.is_world_process_zero():
            try:
                answer[0] = self._find_newest()
            except Exception as error:
                failure, answer[1] = error, str(error)
        broadcast_object_list(answer)
        if failure is not None:
            raise failure
        if answer[1] is not None:
            raise CrashproofError(f"The main process found no checkpoint to resume from: {answer[1]}")
        return answer[0]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the run."""
        # `auto_find_batch_size` starts over in the middle of `train`.
        if self._progress is None:
            self._open(state)
        tracker = self._progress.tracker if self._progress is not None else None
        self._step.keeps_batches = tracker is not None and tracker.is_under_proof
        self._require_same_session()
        self._count_from(state.global_step)
        self._is_finished = 0 < state.max_steps <= state.global_step
        if self._is_finished:
            control.should_training_stop = True
            log.info("Nothing is left to train: %s of %s steps are done.", state.global_step, state.max_steps)
        if args.ignore_data_skip and state.global_step:
            log.warning(
                "ignore_data_skip: the epoch's data start over, so the result differs from an uninterrupted run."
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Reset the sum of losses."""
        self._beside_training.close()
        self._step.begin()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the learning rate before the schedule changes it."""
        self._step.note_learning_rate(kwargs.get("optimizer"))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the step, and stop after it if that was requested."""
        if self._progress is None:
            return
        step = self._step
        loss, is_stop_requested = step.reduce(is_stop_requested=self._interrupts.is_requested)
        tokens: Any = step.tokens if args.include_num_input_tokens_seen == "no" else state.num_input_tokens_seen
        self._progress.update_metrics(
            state.global_step, loss, step.take_logs(), step.learning_rate, step.samples, tokens
        )
        self._progress.witness(
            model=kwargs.get("model"),
            optimizer=kwargs.get("optimizer"),
            scheduler=kwargs.get("lr_scheduler"),
            scaler=self._trainer.accelerator.scaler,
            batch=step.batches,
        )
        if self._stops_at_bad_steps:
            self._stop_at_bad_step(args)
        if is_stop_requested and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True
            self.was_preempted = True
            self._progress.end_as("preempted")
            by = self._interrupts.received.name if self._interrupts.received else "another process"
            log.info("Stopping at step %s by %s. Start the same command again.", f"{state.global_step:,}", by)
        self._show_phase(control)
        self._idle_since = self._clock.steady()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note what the program logs; exclude the time for logging from that for saving."""
        if self._progress is not None:
            self._step.note_logs(kwargs.get("logs"))
        self._idle_since = self._clock.steady()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the results, if during training: otherwise there is no run to record them in."""
        if self._progress is None:
            return
        metrics: Mapping[str, object] = kwargs.get("metrics") or {}
        self._step.forget_logs(metrics)
        found, seconds = evaluation_results(metrics)
        step, known = self._evaluated
        # Several data sets may be evaluated at one step, one after the other.
        results = (known if step == state.global_step else {}) | found
        self._evaluated = (state.global_step, results)
        self._progress.record_evaluation(state.global_step, results, seconds)
        self._idle_since = self._clock.steady()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the checkpoint that a finished run was resumed from, instead of saving it again."""
        if self._is_finished:
            control.should_save = False
        self._show_phase(control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record what the program logged after the last step."""
        self._beside_training.close()
        if self._progress is not None:
            self._progress.record_evaluation(state.global_step, self._step.take_logs())

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Make a checkpoint durable, and record it."""
        if self._progress is None:
            return
        if args.world_size > 1:
            # Each process writes its part, and the main one may finish first.
            self._trainer.accelerator.wait_for_everyone()
        tracker = self._progress.tracker
        if tracker is None:
            return
        folder = self._progress.output_dir / f"checkpoint-{state.global_step}"
        tags = ["periodic", "best_model"] if state.best_global_step == state.global_step else ["periodic"]
        try:
            make_durable(folder)
            seconds = self._clock.steady() - self._idle_since
            tracker.record_checkpoint(
                state.global_step, folder, self._step.samples, tags, seconds=seconds, is_best=None
            )
        except SavesFailed:
            raise
        except (StorageError, OSError) as error:
            if control.should_training_stop or state.global_step >= state.max_steps:
                raise
            log.warning("Could not record %s; training continues: %s", folder.name, error)
            tracker.record_checkpoint_failure(state.global_step, error)

    def _show_phase(self, control: TrainerControl) -> None:
        """Show a supervisor what the trainer is about to do; an evaluation comes before a save."""
        if self._progress is not None and (control.should_evaluate or control.should_save):
            phase = "evaluating" if control.should_evaluate else "saving"
            self._beside_training.close()
            self._beside_training.enter_context(self._progress.phase(phase))

    def _stop_at_bad_step(self, args: TrainingArguments) -> None:
        """Raise on all processes what the main one has found."""
        assert self._progress is not None, "a step is only recorded in an open run"
        verdict = [self._progress.check_step()]
        if args.world_size > 1:
            broadcast_object_list(verdict)
        verdict[0].raise_if_bad()

    def _open(self, state: TrainerState) -> None:
        """Open the run, or that of a trial: each trial of a hyperparameter search is a run in a folder of its own."""
        run, is_trial = self._run, state.is_hyper_param_search
        if is_trial:
            folder = Path(self._trainer._get_output_dir(self._trial))
            config = {**_identity(self._trainer), "trial": state.trial_params}
            run = dataclasses.replace(run, output_dir=folder, config=config)
        if state.is_world_process_zero:
            require_own_run(run.framework, run.folder, read_run(run.folder).session)
        self._progress = self._stack.enter_context(
            TrainingProgressContext(
                run.config,
                run.output_dir,
                state.max_steps,
                is_main_process=state.is_world_process_zero,
                on_config_change=self._on_config_change,
                ignore_config_keys=self._ignore_config_keys,
                config_defaults=self._config_defaults,
                fresh=is_trial,
                settings=self._settings,
                clock=self._clock,
            )
        )

    def _find_newest(self) -> str | None:
        chosen = newest_checkpoint(self._run, clock=self._clock)
        return None if chosen is None else chosen.checkpoint_path

    def _wrap_train(self, train: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `train` so that, however it ends, the run is closed and the signal handlers are restored."""

        @functools.wraps(train)
        def recorded_train(
            resume_from_checkpoint: str | bool | None = None, *args: object, **kwargs: object
        ) -> object:
            if resume_from_checkpoint is True:
                resume_from_checkpoint = self.newest_checkpoint()
            self._resumed_from = resume_from_checkpoint or None
            self.was_preempted = False
            self._trial = kwargs.get("trial", args[0] if args else None)
            try:
                with ExitStack() as self._stack:
                    self._interrupts = self._stack.enter_context(Interrupts())
                    return train(resume_from_checkpoint, *args, **kwargs)
            finally:
                self._progress, self._trial, self._is_finished = None, None, False

        return recorded_train

    def _wrap_training_step(self, training_step: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `training_step` to add up its losses, on their device."""

        @functools.wraps(training_step)
        def recorded_step(model: object, inputs: Any, *args: object, **kwargs: object) -> Any:
            self._step.count(inputs)
            loss = training_step(model, inputs, *args, **kwargs)
            self._step.add_loss(loss)
            return loss

        return recorded_step

    def _wrap_get_batch_samples(self, get_batch_samples: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `get_batch_samples` so that a run that has reached its end gets no more data."""

        @functools.wraps(get_batch_samples)
        def samples_left(*args: object, **kwargs: object) -> Any:
            # A Trainer that resumes in mid-epoch takes a step before it checks whether any is left.
            return ([], None) if self._is_finished else get_batch_samples(*args, **kwargs)

        return samples_left

    def _require_same_session(self) -> None:
        path = self._resumed_from
        if path is not None and not Path(path).exists():
            raise ConfigError(
                f"{path} belongs to a session with another config, and was archived with it.",
                hint='Pass newest_checkpoint() instead, or on_config_change="continue".',
            )

    def _count_from(self, step: int) -> None:
        """Restore the counts of samples and tokens at a step."""
        self._step.restart(step * self._run.samples_per_step, 0)
        if self._progress is None or self._progress.tracker is None:
            return
        session = self._progress.tracker.session
        for checkpoint in CheckpointCatalog(session).at_step(step):
            if checkpoint.metrics is not None and checkpoint.metrics.step == step:
                counts = checkpoint.metrics
                self._step.restart(counts.samples_processed, counts.tokens_processed)
        known = [] if self._trial is not None else recorded_checkpoints(self._run, session)
        if known and self._resumed_from is None:
            newest = max(each.checkpoint_step for each in known)
            log.warning(
                "Training begins at step 0 though checkpoint-%d is recorded. Pass "
                "resume_from_checkpoint=hold.newest_checkpoint() to resume from it.",
                newest,
            )


def _identity(trainer: Trainer) -> dict[str, object]:
    """The config that identifies the run: what is trained, and how."""
    model = trainer.model
    arguments = {
        name: value
        for name, value in trainer.args.to_dict().items()  # type: ignore[no-untyped-call]
        if not name.startswith(_HOW_NOT_WHAT) and not name.endswith(("_dir", "_token"))
    }
    # Not to be a key that counts, but to tell the global batch.
    arguments["num_processes"] = _num_replicas(trainer)
    adapters = getattr(model, "peft_config", None)
    return {
        "framework": "transformers",
        "train": arguments,
        "model": {"class": type(model).__name__} | _model_config(getattr(model, "config", None)),
        "adapters": {name: _model_config(each) for name, each in adapters.items()} if adapters else {},
    }


def _defaults(trainer: Trainer) -> dict[str, object]:
    """What the absence of a key means: another version of a library has other arguments."""
    model = trainer.model
    adapters = getattr(model, "peft_config", None) or {}
    return {
        "train": _field_defaults(type(trainer.args)),
        "model": _config_defaults(getattr(model, "config", None)),
        "adapters": {name: _field_defaults(type(each)) for name, each in adapters.items()},
    }


def _field_defaults(kind: type) -> dict[str, object]:
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    defaults: dict[str, object] = {}
    for each in fields:
        if each.default is not dataclasses.MISSING:
            defaults[each.name] = getattr(each.default, "value", each.default)
        elif each.default_factory is not dataclasses.MISSING:
            defaults[each.name] = each.default_factory()
    return defaults


def _config_defaults(config: object) -> dict[str, object]:
    try:
        return _model_config(type(config)())
    except (TypeError, ValueError):
        # A model's own class may require arguments; then absence means none.
        return {}


def _num_replicas(trainer: Trainer) -> int:
    """The processes that take samples of their own."""
    args = trainer.args
    samples = args.train_batch_size * args.gradient_accumulation_steps
    return trainer.get_total_train_batch_size(args) // samples


def _model_config(config: object) -> dict[str, object]:
    if not hasattr(config, "to_dict"):
        return {}
    return {name: value for name, value in config.to_dict().items() if name not in _OF_THE_FILE}

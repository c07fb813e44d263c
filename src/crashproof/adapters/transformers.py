"""Record a run of the Hugging Face Trainer."""

# ruff: noqa: E402 - a missing extra is reported before anything of it is imported.

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from crashproof.adapters.resume import FrameworkRun, newest_checkpoint, recorded_checkpoints, require_own_run
from crashproof.checkpoints.digest import make_durable
from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.errors import ConfigError, CrashproofError, DiskFull, RunClosed
from crashproof.optional_dependencies import require_modules, require_versions
from crashproof.reading.run_state import read_run
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.rules.identity import IdentityRules
from crashproof.rules.retention import KeepLatest, RetentionRule
from crashproof.scalars import PendingScalar, is_on_device, start_copy
from crashproof.tracking.context import TrainingProgressContext
from crashproof.tracking.settings import TrackerSettings
from crashproof.tracking.tracker import ProgressTracker

require_modules("transformers", "accelerate", "torch", "transformers")
require_versions("transformers", {"transformers": "5.20", "accelerate": "1.1"})

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

from crashproof.pytorch.interrupts import EXIT_PREEMPTED, Interrupts
from crashproof.rules.checkpoint_catalog import CheckpointCatalog

__all__ = ["CrashproofCallback"]

log = logging.getLogger("crashproof")

_NAME = re.compile(r"checkpoint-(?P<step>\d+)")
_DEFAULT_FOLDERS = ("trainer_output", "tmp_trainer")
"""The default output folders of transformers."""

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
_NO_RESULTS = ("_runtime", "_per_second", "epoch")
"""Endings of what an evaluation reports besides its results."""


class _AlreadyComplete(Exception):
    """The checkpoint that training resumes from is that of the last step."""


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
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Attach to a trainer; touches no disk yet.

        Args:
            trainer: With an `output_dir` of its own. From here on crashproof applies `save_total_limit`: it deletes
                an old checkpoint only once a newer one has been verified.
            on_config_change: See `ProgressTracker`; the config is that of the model and of the training arguments.
            ignore_config_keys: Further keys of it that do not count, such as `train.optim`; see `ProgressTracker`.
            settings: How often to write, and which checkpoints to keep.
            clock: The source of time.

        Raises:
            ConfigError: the trainer has no `output_dir` of its own, saves in an unsupported way, or has a callback of
                this kind already.
        """
        output_dir = _require_usable(trainer)
        self.was_preempted = False
        """Whether training stopped on request, with its newest step in a checkpoint."""
        self._trainer = trainer
        self._clock = clock
        self._on_config_change = on_config_change
        self._ignore_config_keys = ignore_config_keys
        self._config_defaults = _defaults(trainer)
        self._settings = _with_rule(settings or TrackerSettings(), trainer)
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
        self._interrupts = Interrupts()
        self._resumed_from: str | None = None
        self._loss: Tensor | None = None
        """The loss of the current step so far: the sum over its parts."""
        self._learning_rate: Tensor | float = 0.0
        self._samples = self._tokens = 0
        self._num_stopping: PendingScalar | float = 0.0
        """The number of processes with a request to stop, as of the previous step."""
        self._evaluated: tuple[int, dict[str, float]] = (-1, {})
        self._idle_since = 0.0
        # Callbacks get the loss only averaged and filtered, and an exception of `train` not at all. These two
        # methods see both, whatever the class of the trainer.
        trainer.training_step = self._wrap_training_step(trainer.training_step)  # type: ignore[method-assign]
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
        if state.is_hyper_param_search:
            raise ConfigError(
                "A hyperparameter search is many runs, and cannot be recorded as one.",
                hint="Use CrashproofCallback with trainer.train() alone.",
            )
        # `auto_find_batch_size` starts over in the middle of `train`.
        if self._progress is None:
            if state.is_world_process_zero:
                require_own_run(self._run.framework, self._run.folder, read_run(self._run.folder).session)
            self._progress = self._stack.enter_context(
                TrainingProgressContext(
                    self._run.config,
                    self._run.output_dir,
                    state.max_steps,
                    is_main_process=state.is_world_process_zero,
                    on_config_change=self._on_config_change,
                    ignore_config_keys=self._ignore_config_keys,
                    config_defaults=self._config_defaults,
                    settings=self._settings,
                    clock=self._clock,
                )
            )
        self._require_same_session()
        self._count_from(state.global_step)
        self._loss = None
        if state.global_step >= state.max_steps:
            # The Trainer looks at the number of steps only after a step, so it would train one more.
            raise _AlreadyComplete
        if args.ignore_data_skip and state.global_step:
            log.warning(
                "ignore_data_skip: the epoch's data start over, so the result differs from an uninterrupted run."
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Reset the sum of losses."""
        self._loss = None

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the learning rate before the schedule changes it."""
        rate = kwargs["optimizer"].param_groups[0]["lr"]
        self._learning_rate = rate.detach().clone() if isinstance(rate, Tensor) else float(rate)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the step, and stop after it if that was requested."""
        if self._progress is None or self._loss is None:
            return
        loss, is_stop_requested = self._reduce(self._loss)
        tokens = self._tokens if args.include_num_input_tokens_seen == "no" else state.num_input_tokens_seen
        self._progress.update_metrics(state.global_step, loss, {}, self._learning_rate, self._samples, int(tokens))
        if is_stop_requested and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True
            self.was_preempted = True
            self._progress.end_as("preempted")
            by = self._interrupts.received.name if self._interrupts.received else "another process"
            log.info("Stopping at step %s by %s. Start the same command again.", f"{state.global_step:,}", by)
        self._idle_since = self._clock.steady()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Exclude the time for logging from that for saving."""
        self._idle_since = self._clock.steady()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the results, if during training: otherwise there is no run to record them in."""
        if self._progress is None:
            return
        metrics: Mapping[str, Any] = kwargs.get("metrics") or {}
        step, known = self._evaluated
        # Several data sets may be evaluated at one step, one after the other.
        results = (known if step == state.global_step else {}) | {
            name: float(value)
            for name, value in metrics.items()
            if isinstance(value, (int, float)) and not name.endswith(_NO_RESULTS)
        }
        self._evaluated = (state.global_step, results)
        seconds = sum(float(value) for name, value in metrics.items() if name.endswith("_runtime"))
        self._progress.record_evaluation(state.global_step, results, seconds)
        self._idle_since = self._clock.steady()

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
        folder = self._run.output_dir / f"checkpoint-{state.global_step}"
        tags = ["periodic", "best_model"] if state.best_global_step == state.global_step else ["periodic"]
        try:
            make_durable(folder)
            seconds = self._clock.steady() - self._idle_since
            tracker.record_checkpoint(state.global_step, folder, self._samples, tags, seconds=seconds, is_best=None)
        except DiskFull as error:
            if control.should_training_stop or state.global_step >= state.max_steps:
                raise
            log.warning("Could not record %s; training continues: %s", folder.name, error)

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
            self._num_stopping = 0.0
            try:
                with ExitStack() as self._stack:
                    self._interrupts = self._stack.enter_context(Interrupts())
                    try:
                        return train(resume_from_checkpoint, *args, **kwargs)
                    except _AlreadyComplete:
                        return self._finish_complete_training()
            finally:
                self._progress = None

        return recorded_train

    def _finish_complete_training(self) -> TrainOutput:
        """Do what `train` does after its last step; model, optimizer and schedule are loaded by now."""
        trainer = self._trainer
        log.info("All %s steps are done already; training no further.", f"{trainer.state.global_step:,}")
        if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None:
            trainer._load_best_model()
        trainer.control = trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
        trainer.is_in_train = False
        return TrainOutput(trainer.state.global_step, 0.0, {"train_loss": 0.0})

    def _wrap_training_step(self, training_step: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Wrap `training_step` to add up its losses, on their device."""

        @functools.wraps(training_step)
        def recorded_step(model: object, inputs: Any, *args: object, **kwargs: object) -> Tensor:
            samples, tokens = _count(inputs, self._trainer)
            loss = training_step(model, inputs, *args, **kwargs)
            if self._loss is None:
                self._loss = torch.zeros((), device=loss.device)
            self._loss = self._loss + loss.detach()
            self._samples += samples
            self._tokens += tokens
            return loss

        return recorded_step

    def _reduce(self, loss: Tensor) -> tuple[Tensor, bool]:
        """The mean loss, and whether any process was requested to stop; all learn of it after the same step."""
        is_requested = self._interrupts.is_requested
        world_size = self._trainer.args.world_size
        if world_size == 1:
            return loss, is_requested
        numbers = torch.stack([loss.float(), torch.full_like(loss, float(is_requested), dtype=torch.float32)])
        torch.distributed.all_reduce(numbers)
        before, stopping = self._num_stopping, numbers[1]
        self._num_stopping = start_copy(stopping) if is_on_device(stopping) else float(stopping)
        return numbers[0] / world_size, (before if isinstance(before, float) else before.value()) > 0

    def _require_same_session(self) -> None:
        path = self._resumed_from
        if path is not None and not Path(path).exists():
            raise ConfigError(
                f"{path} belongs to a session with another config, and was archived with it.",
                hint='Pass newest_checkpoint() instead, or on_config_change="continue".',
            )

    def _count_from(self, step: int) -> None:
        """Restore the counts of samples and tokens at a step."""
        self._samples, self._tokens = step * self._run.samples_per_step, 0
        if self._progress is None or self._progress.tracker is None:
            return
        session = self._progress.tracker.session
        for checkpoint in CheckpointCatalog(session).at_step(step):
            if checkpoint.metrics is not None and checkpoint.metrics.step == step:
                counts = checkpoint.metrics
                self._samples, self._tokens = counts.samples_processed, counts.tokens_processed
        known = recorded_checkpoints(self._run, session)
        if known and self._resumed_from is None:
            newest = max(each.checkpoint_step for each in known)
            log.warning(
                "Training begins at step 0 though checkpoint-%d is recorded. Pass "
                "resume_from_checkpoint=hold.newest_checkpoint() to resume from it.",
                newest,
            )


class _KeepBestModel(RetentionRule):
    """Keep the checkpoint that a Trainer would load as the best one."""

    __slots__ = ("_trainer",)

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def choose(self, checkpoints: Iterable[CheckpointMetadata]) -> set[int]:
        """The one that the Trainer names, which may have been evaluated between two checkpoints."""
        best = self._trainer.state.best_model_checkpoint
        name = _NAME.fullmatch(Path(best).name) if best else None
        return {each.checkpoint_step for each in checkpoints if name and each.checkpoint_step == int(name["step"])}


def _require_usable(trainer: Trainer) -> Path:
    """Check that the trainer can be recorded, and return its output folder."""
    args = trainer.args
    if not args.output_dir or args.output_dir in _DEFAULT_FOLDERS:
        raise ConfigError(
            f"The Trainer has no output_dir of its own ({args.output_dir or 'none'} is what transformers takes where "
            "none is named).",
            hint='Pass TrainingArguments(output_dir="runs/my-run"), the same at every start.',
        )
    if args.enable_jit_checkpoint:
        raise ConfigError(
            "enable_jit_checkpoint saves on SIGTERM, and so does crashproof.", hint="Leave enable_jit_checkpoint out."
        )
    if any(isinstance(each, CrashproofCallback) for each in trainer.callback_handler.callbacks):
        raise ConfigError("The Trainer has a CrashproofCallback already.", hint="Add one to each Trainer.")
    if args.save_only_model:
        log.warning("save_only_model: without optimizer and random states no resume is exact.")
    if args.train_sampling_strategy == "group_by_length":
        log.warning(
            "group_by_length draws a new order of the epoch on a resume: some data come twice, some not at all."
        )
    return Path(args.output_dir)


def _with_rule(settings: TrackerSettings, trainer: Trainer) -> TrackerSettings:
    """Take over the deletion of checkpoints: `transformers` deletes before the new one is verified."""
    rule, limit = settings.keep, trainer.args.save_total_limit
    if limit is not None and limit > 0:
        rule = KeepLatest(limit) if rule is None else rule | KeepLatest(limit)
        if trainer.is_world_process_zero():
            log.info(
                "crashproof applies save_total_limit=%d: it deletes an old checkpoint once a newer one has been "
                "verified, and keeps the best one.",
                limit,
            )
    trainer.args.save_total_limit = None
    return settings if rule is None else dataclasses.replace(settings, keep=rule | _KeepBestModel(trainer))


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


def _count(inputs: Any, trainer: Trainer) -> tuple[int, int]:
    """The samples and tokens of a batch over all processes, from its shapes: nothing waits for a device."""
    num_replicas = _num_replicas(trainer)
    tensors = [value for value in inputs.values() if isinstance(value, Tensor) and value.ndim] if inputs else []
    num_samples = len(tensors[0]) if tensors else trainer.args.train_batch_size
    tokens = inputs.get("input_ids") if isinstance(inputs, Mapping) else None
    num_tokens = tokens.numel() if isinstance(tokens, Tensor) else 0
    return num_samples * num_replicas, num_tokens * num_replicas

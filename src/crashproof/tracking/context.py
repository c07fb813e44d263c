"""The context around a training loop.

Off the main process, everything here does nothing: no file, no folder, no thread.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from crashproof.checkpoints.added_files import log_added_files
from crashproof.checkpoints.digest import Digest
from crashproof.checkpoints.loose import find_loose
from crashproof.checkpoints.select import choose_for
from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.disk.atomic import WholeFile
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import RecordsLost, RunClosed
from crashproof.odd_values import OddValues
from crashproof.reading.run_state import read_run
from crashproof.records.rank_times import RankTimes
from crashproof.records.states import AttemptState, OnConfigChange
from crashproof.records.supervision import Phase
from crashproof.rules.identity import IdentityRules, canonical_config, is_another_run
from crashproof.scalars import as_float
from crashproof.tracking.bad_steps.verdict import StepVerdict
from crashproof.tracking.settings import TrackerSettings
from crashproof.tracking.tracker import ProgressTracker

__all__ = [
    "TrainingProgressContext",
    "calculate_metrics_from_step",
    "get_recovery_checkpoint",
    "setup_progress_tracking",
    "training_progress_context",
]

log = logging.getLogger("crashproof")

_ODD_VALUES = OddValues()
"""Of `calculate_metrics_from_step`, which belongs to no run."""


class TrainingProgressContext:
    """A run as a context around a training loop.

    Leaving it normally, also by `sys.exit(0)`, ends the attempt as `completed`; any other exception ends it as
    `raised` and is raised further.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        output_dir: str | Path,
        total_steps: int,
        is_main_process: bool = True,
        session_id: str | None = None,
        *,
        on_config_change: OnConfigChange | str = OnConfigChange.ARCHIVE,
        ignore_config_keys: Sequence[str] = (),
        config_defaults: Mapping[str, Any] | None = None,
        fresh: bool = False,
        settings: TrackerSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
        disk: Disk = REAL_DISK,
    ) -> None:
        """Touches no disk yet; the arguments are those of `ProgressTracker`, except that `progress/` lies under
        `output_dir`, and that nothing is done if `is_main_process` is false.
        """
        self.tracker: ProgressTracker | None = None
        """The run's writer while the context is entered on the main process."""
        self._config = config
        self._output_dir = Path(output_dir)
        self._folder = RunFolder.under(Path(output_dir))
        self._total_steps = total_steps
        self._is_main_process = is_main_process
        self._session_id = session_id
        self._checkpoint_counter = 0
        self._on_config_change = on_config_change
        self._ignore_config_keys = ignore_config_keys
        self._config_defaults = config_defaults
        self._fresh = fresh
        self._settings = settings
        self._clock = clock
        self._disk = disk
        self._ends_as = AttemptState.COMPLETED
        self._final_summary: dict[str, Any] = {"status": "not_initialized"}

    @property
    def config(self) -> Mapping[str, Any]:
        """The config, as given."""
        return self._config

    @property
    def output_dir(self) -> Path:
        """The run's folder; `progress/` lies under it."""
        return self._output_dir

    @property
    def total_steps(self) -> int:
        """Optimizer steps to train."""
        return self._total_steps

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes the run."""
        return self._is_main_process

    @property
    def checkpoint_counter(self) -> int:
        """Checkpoints recorded by this context."""
        return self._checkpoint_counter

    def __enter__(self) -> Self:
        if self._is_main_process:
            self.tracker = ProgressTracker(
                self._folder.progress,
                self._config,
                self._total_steps,
                self._session_id,
                on_config_change=self._on_config_change,
                ignore_config_keys=self._ignore_config_keys,
                config_defaults=self._config_defaults,
                fresh=self._fresh,
                settings=self._settings,
                clock=self._clock,
                disk=self._disk,
            )
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.tracker is None:
            return
        tracker, self.tracker = self.tracker, None
        error = None if _is_orderly_exit(exception) else exception
        how = self._ends_as if error is None or self._ends_as == AttemptState.PREEMPTED else AttemptState.RAISED
        try:
            tracker.close(how, error)
        finally:
            self._final_summary = tracker.get_progress_summary()

    def _open_tracker(self) -> ProgressTracker | None:
        """The writer; None off the main process.

        Raises:
            RunClosed: on the main process, if the context was not entered, or was left.
        """
        if self.tracker is None and self._is_main_process:
            why = "was left" if "session_id" in self._final_summary else "was not entered yet"
            raise RunClosed(self._folder.root, why=why)
        return self.tracker

    def update_metrics(
        self,
        step: int,
        loss: object,
        loss_components: Mapping[str, object],
        learning_rate: object,
        samples_processed: int,
        tokens_processed: int,
    ) -> None:
        """See `ProgressTracker.update_metrics`; the throughput is computed."""
        tracker = self._open_tracker()
        if tracker is not None:
            tracker.update_metrics(step, loss, loss_components, learning_rate, samples_processed, tokens_processed)

    def witness(self, **components: object) -> None:
        """See `ProgressTracker.witness`."""
        if self.tracker is not None and self.tracker.is_under_proof:
            self.tracker.witness(**components)

    def record_checkpoint(
        self,
        step: int,
        checkpoint_path: str | Path,
        dataset_position: int,
        is_best: bool | None = False,
        *,
        written: WholeFile | Digest | None = None,
        seconds: float | None = None,
        save_seconds: float | None = None,
    ) -> None:
        """See `ProgressTracker.record_checkpoint`; the best one so far is also tagged `best_loss`.

        With `is_best=None`, the losses decide.
        """
        tracker = self._open_tracker()
        if tracker is not None:
            tracker.record_checkpoint(
                step,
                checkpoint_path,
                dataset_position,
                written=written,
                seconds=seconds,
                save_seconds=save_seconds,
                is_best=is_best,
            )
            self._checkpoint_counter += 1

    def record_checkpoint_failure(self, step: int, error: object) -> None:
        """See `ProgressTracker.record_checkpoint_failure`."""
        tracker = self._open_tracker()
        if tracker is not None:
            tracker.record_checkpoint_failure(step, error)

    def record_evaluation(self, step: int, results: Mapping[str, Any], seconds: float | None = None) -> None:
        """See `ProgressTracker.record_evaluation`."""
        tracker = self._open_tracker()
        if tracker is not None:
            tracker.record_evaluation(step, results, seconds)

    def check_step(self) -> StepVerdict:
        """See `ProgressTracker.check_step`; off the main process no step is bad, so share the verdict of that one."""
        tracker = self._open_tracker()
        return StepVerdict() if tracker is None else tracker.check_step()

    def record_rank_times(self, times: RankTimes) -> None:
        """See `ProgressTracker.record_rank_times`."""
        tracker = self._open_tracker()
        if tracker is not None:
            tracker.record_rank_times(times)

    def record_api_response(self, prompt_hash: str, response: Mapping[str, Any], cost: float = 0.0) -> None:
        """See `ProgressTracker.record_api_response`."""
        tracker = self._open_tracker()
        if tracker is not None:
            tracker.record_api_response(prompt_hash, response, cost)

    def record_connection_failure(self, retry_count: int, error: object) -> None:
        """See `ProgressTracker.record_connection_failure`."""
        tracker = self._open_tracker()
        if tracker is not None:
            tracker.record_connection_failure(retry_count, error)

    def phase(self, phase: Phase | str) -> AbstractContextManager[None]:
        """See `ProgressTracker.phase`; does nothing while no run is open."""
        return nullcontext() if self.tracker is None else self.tracker.phase(phase)

    def get_progress_summary(self) -> dict[str, Any]:
        """The fields of `progress.json`; `{"status": "not_initialized"}` if the context was never entered."""
        return self._final_summary if self.tracker is None else self.tracker.get_progress_summary()

    def get_remaining_seconds(self) -> float | None:
        """See `ProgressTracker.get_remaining_seconds`."""
        return None if self.tracker is None else self.tracker.get_remaining_seconds()

    def end_as(self, how: AttemptState | str) -> None:
        """Set how the attempt ends when the context is left, such as `preempted`."""
        self._ends_as = AttemptState(how)


def _is_orderly_exit(exception: BaseException | None) -> bool:
    """Whether a program that ends like this tells its shell that all went well, as `sys.exit(0)` does."""
    return isinstance(exception, SystemExit) and exception.code in (None, 0)


training_progress_context = TrainingProgressContext
"""`with training_progress_context(config, output_dir, total_steps) as progress: …`"""


def setup_progress_tracking(
    config: Mapping[str, Any],
    output_dir: str | Path,
    total_steps: int,
    is_main_process: bool = True,
    session_id: str | None = None,
    *,
    ignore_config_keys: Sequence[str] = (),
) -> TrainingProgressContext:
    """A context to enter later, for loops that cannot be indented."""
    return TrainingProgressContext(
        config, output_dir, total_steps, is_main_process, session_id, ignore_config_keys=ignore_config_keys
    )


def get_recovery_checkpoint(
    output_dir: str | Path, config: Mapping[str, Any] | None = None, *, ignore_config_keys: Sequence[str] = ()
) -> tuple[Path, int] | None:
    """The checkpoint to resume from and the samples consumed at it, or None for a fresh start.

    Changes nothing, needs no lock, and may be called in every process. With `config`, a run with another config has
    no checkpoint to offer, as it is about to be archived; `ignore_config_keys` are those of the tracker.

    Raises:
        NoUsableCheckpoint: some were recorded, but none can be used.
        RecordsLost: likewise, as what was recorded cannot be read any more: the files of `progress/` are damaged or
            gone, and checkpoints lie beside them.
        NewerFormat: the run was written by a newer version.
    """
    folder = RunFolder.under(Path(output_dir))
    session = read_run(folder).session
    if session is None:
        loose = find_loose(folder)
        if loose:
            raise RecordsLost(folder.root, found=loose)
        return None
    # An adopted session has no config yet: the next start continues it, whatever its config.
    if config is not None and session.config_hash:
        rules = IdentityRules.of(ignore_config_keys)
        if is_another_run(session.config, canonical_config(config), rules):
            return None
    choice = choose_for(session, folder)
    if choice is None:
        return None
    for checkpoint, reason in choice.suspect:
        log.warning("Passing over %s: %s.", checkpoint.checkpoint_path, reason)
    for checkpoint, reason in choice.refused:
        log.warning("Skipping %s: %s.", checkpoint.checkpoint_path, reason)
    log_added_files(choice.checkpoint, folder)
    return choice.path, choice.checkpoint.dataset_position


def calculate_metrics_from_step(
    loss: object, loss_dict: Mapping[str, object] | None = None, scheduler: Any = None
) -> tuple[float, dict[str, float], float]:
    """Plain numbers of a step: the loss, its components by name, and the learning rate.

    Without `loss_dict` the components are `{"total": loss}`; nested ones are named `outer/inner`, and what is not a
    number is left out. Without `scheduler` the learning rate is 0.0. A tensor on a device is waited for here; to
    avoid that, pass it to `update_metrics` itself.

    Raises:
        InvalidMetric: the loss is not one number.
    """
    total = as_float(loss, "loss")
    found = _ODD_VALUES.numbers(loss_dict or {"total": total}, "loss_dict")
    components = {name: as_float(value, name) for name, value in found.items()}
    learning_rate = 0.0 if scheduler is None else as_float(scheduler.get_last_lr()[0], "learning_rate")
    return total, components, learning_rate

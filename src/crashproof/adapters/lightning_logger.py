"""Record what Lightning logs."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.nn import Module

from crashproof.adapters.lightning_run import SharedRun
from crashproof.errors import ConfigError
from crashproof.plain_values import named_fields
from crashproof.tracking.tracker import ProgressTracker

__all__ = ["CrashproofLogger", "newly_logged"]

log = logging.getLogger("crashproof")

_VERBS_WITHOUT_A_RUN = ("validate", "test", "predict")


def newly_logged(logged: Mapping[str, object], seen: Mapping[str, object]) -> dict[str, object]:
    """What was logged since `seen`: Lightning repeats the rest as the same objects."""
    return {name: value for name, value in logged.items() if name not in seen or not _is_same(seen[name], value)}


def _is_same(seen: object, value: object) -> bool:
    if isinstance(seen, Tensor) and isinstance(value, Tensor):
        # `seen` keeps its memory alive, so a new tensor has another address.
        return seen.data_ptr() == value.data_ptr()
    return seen is value


class CrashproofLogger(Logger):
    """Add hyperparameters to the run's config, and record the remaining metrics; created by `Crashproof`.

    The callback records what `training_step` logs with each step, and what validation logs with its evaluation. Of
    the rest, means over an epoch are recorded with the evaluation of its last step; what other callbacks log in
    mid-epoch, such as `LearningRateMonitor`, become components of the next step.
    """

    def __init__(self, shared: SharedRun) -> None:
        super().__init__()
        self._shared = shared

    @property
    def name(self) -> str:
        """Empty: a run is named by its folder, and `ModelCheckpoint` saves below it."""
        return ""

    @property
    def version(self) -> str:
        """Empty: the attempts of a run are not versions of it."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self._shared.run.output_dir)

    @property
    def experiment(self) -> ProgressTracker | None:
        """The run's writer while the trainer fits, on the main process."""
        return self._shared.tracker

    def log_hyperparams(self, params: object, *args: object, **kwargs: object) -> None:
        """Add them to the config, before training begins."""
        trainer = self._shared.trainer
        if trainer is not None and trainer.state.fn in _VERBS_WITHOUT_A_RUN:
            return
        if self._shared.tracker is not None:
            log.warning(
                "Ignoring hyperparameters logged during training: the run's config is fixed at its beginning."
            )
            return
        values = named_fields(params)
        if values is None:
            log.warning("Ignoring hyperparameters of type %s: they have no names.", type(params).__name__)
            return
        self._shared.config.update(values)

    def log_graph(self, model: Module, input_array: Tensor | None = None) -> None:
        """Check, before the first step, that there is a callback to record the steps; no graph is recorded.

        Raises:
            ConfigError: the trainer is about to fit without it.
        """
        trainer = getattr(model, "_trainer", None)
        if trainer is not None and trainer.state.fn == "fit" and self._shared.trainer is not trainer:
            raise ConfigError(
                "hold.logger is used without hold.callback.", hint="Pass Trainer(callbacks=[hold.callback], …)."
            )

    def log_metrics(self, metrics: Mapping[str, object], step: int | None = None) -> None:
        """Record what the callback does not; outside of `trainer.fit` there is no run to record it in."""
        trainer = self._shared.trainer
        if self._shared.tracker is None or trainer is None or trainer.validating:
            return
        rest = {
            name: value for name, value in metrics.items() if name not in self._shared.step_components | {"epoch"}
        }
        if rest and self._shared.is_epoch_over:
            self._shared.tracker.record_evaluation(trainer.global_step, rest)
        else:
            self._shared.pending |= rest

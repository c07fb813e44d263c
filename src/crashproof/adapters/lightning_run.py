"""The run that the parts of the Lightning adapter share."""

from __future__ import annotations

from lightning.pytorch import Trainer

from crashproof.adapters.deferred_run import DeferredRun
from crashproof.tracking.tracker import ProgressTracker

__all__ = ["SharedRun"]


class SharedRun:
    """The state that the callback, the logger and the checkpoint plugin share."""

    def __init__(self, run: DeferredRun, config: dict[str, object], total_steps: int | None) -> None:
        self.run = run
        self.config = config
        self.total_steps = total_steps
        self.tracker: ProgressTracker | None = None
        """The run's writer while the trainer fits, on the main process."""
        self.trainer: Trainer | None = None
        """Known once the callback is set up."""
        self.samples = 0
        """The samples consumed by all processes since the beginning of the run."""
        self.step_components: set[str] = set()
        """The names recorded as components of a step's loss."""
        self.pending: dict[str, object] = {}
        """What other callbacks have logged for the current step."""
        self.is_epoch_over = False

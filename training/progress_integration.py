"""The training loop's side of the tracker."""

from crashproof.tracking.context import (
    TrainingProgressContext,
    calculate_metrics_from_step,
    get_recovery_checkpoint,
    setup_progress_tracking,
    training_progress_context,
)

__all__ = [
    "TrainingProgressContext",
    "calculate_metrics_from_step",
    "get_recovery_checkpoint",
    "setup_progress_tracking",
    "training_progress_context",
]

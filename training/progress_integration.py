"""The tracker's context for a training loop."""

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

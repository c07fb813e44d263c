"""The tracker and its records."""

from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.session import TrainingSession
from crashproof.tracking.tracker import ProgressTracker

__all__ = ["CheckpointMetadata", "MetricsSnapshot", "ProgressTracker", "TrainingSession"]

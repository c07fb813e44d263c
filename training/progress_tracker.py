"""The tracker and what it keeps."""

from crashproof.records import CheckpointMetadata, MetricsSnapshot, TrainingSession
from crashproof.tracker import ProgressTracker

__all__ = ["CheckpointMetadata", "MetricsSnapshot", "ProgressTracker", "TrainingSession"]

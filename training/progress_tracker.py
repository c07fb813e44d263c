"""The tracker and what it keeps."""

from holdfast.records import CheckpointMetadata, MetricsSnapshot, TrainingSession
from holdfast.tracker import ProgressTracker

__all__ = ["CheckpointMetadata", "MetricsSnapshot", "ProgressTracker", "TrainingSession"]

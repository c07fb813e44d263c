"""Keeps a training run's progress through crashes: metrics, checkpoints and paid-for teacher answers."""

from __future__ import annotations

from holdfast.alerts import AlertSettings
from holdfast.clock import SYSTEM_CLOCK, Clock
from holdfast.context import (
    TrainingProgressContext,
    calculate_metrics_from_step,
    get_recovery_checkpoint,
    setup_progress_tracking,
    training_progress_context,
)
from holdfast.disk.atomic import WholeFile, write_whole, write_whole_folder
from holdfast.errors import HoldfastError
from holdfast.loading import load
from holdfast.reader import RunReader
from holdfast.records import CheckpointMetadata, MetricsSnapshot, TrainingSession
from holdfast.report import show
from holdfast.rules.retention import KeepBest, KeepEvery, KeepLatest, KeepMilestones
from holdfast.tracker import ProgressTracker
from holdfast.writer import TrackerSettings

__all__ = [
    "SYSTEM_CLOCK",
    "AlertSettings",
    "CheckpointMetadata",
    "Clock",
    "HoldfastError",
    "KeepBest",
    "KeepEvery",
    "KeepLatest",
    "KeepMilestones",
    "MetricsSnapshot",
    "ProgressTracker",
    "RunReader",
    "TrackerSettings",
    "TrainingProgressContext",
    "TrainingSession",
    "WholeFile",
    "calculate_metrics_from_step",
    "get_recovery_checkpoint",
    "load",
    "setup_progress_tracking",
    "show",
    "training_progress_context",
    "write_whole",
    "write_whole_folder",
]

"""Keeps a training run's progress through crashes: metrics, checkpoints and paid-for teacher answers."""

from __future__ import annotations

from crashproof.alerts import AlertSettings
from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.context import (
    TrainingProgressContext,
    calculate_metrics_from_step,
    get_recovery_checkpoint,
    setup_progress_tracking,
    training_progress_context,
)
from crashproof.disk.atomic import WholeFile, write_whole, write_whole_folder
from crashproof.errors import CrashproofError
from crashproof.loading import load
from crashproof.reader import RunReader
from crashproof.records import CheckpointMetadata, MetricsSnapshot, TrainingSession
from crashproof.report import show
from crashproof.rules.retention import KeepBest, KeepEvery, KeepLatest, KeepMilestones
from crashproof.tracker import ProgressTracker
from crashproof.writer import TrackerSettings

__all__ = [
    "SYSTEM_CLOCK",
    "AlertSettings",
    "CheckpointMetadata",
    "Clock",
    "CrashproofError",
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
